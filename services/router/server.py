"""RouterService: RPCs to the pipeline, the fleet to messages."""

import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import grpc

from baton.errors import InvalidRequestError
from baton.rpc.link_server import serve_link
from baton.rpc.links import ROUTER_LINK
from baton.rpc.pace import Pace
from baton.rpc.server import statuses
from baton.rpc.status import duration
from baton.rpc.worker_info import age_message, worker_info
from baton.state.fleet import FleetView
from baton.state.records import WorkerRole
from baton.v1 import router_pb2, router_pb2_grpc
from services.router.access import Access, Caller
from services.router.candidates import Candidates
from services.router.explain_messages import decision_message, explanation_message
from services.router.explanations import Explanations
from services.router.metrics import RouterMetrics
from services.router.model import ServedModel
from services.router.outlet import LinkOutlet, RouterCall, StreamOutlet
from services.router.permits import PermitClient
from services.router.pipeline import Pipeline
from services.router.requests import RequestBook
from services.router.tickets import TicketCall

SERVICE = "baton.v1.RouterService"
TRACEPARENT = "traceparent"
DEFAULT_LISTED = 100


class RouterServer(router_pb2_grpc.RouterServiceServicer):
    """Serves clients."""

    def __init__(
        self,
        pipeline: Pipeline,
        fleet: FleetView,
        candidates: Candidates,
        model: ServedModel,
        metrics: RouterMetrics,
        explanations: Explanations,
        pace: Pace,
        book: RequestBook,
        access: Access,
        permits: PermitClient,
    ) -> None:
        self._pipeline = pipeline
        self._fleet = fleet
        self._candidates = candidates
        self._model = model
        self._metrics = metrics
        self._explanations = explanations
        self._pace = pace
        self._book = book
        self._access = access
        self._permits = permits

    # The read-write form of grpc.aio, in which a slow client makes `write` wait.
    async def Generate(  # type: ignore[override]
        self,
        request: router_pb2.GenerateRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        """Streams the answer to one prompt."""
        async with statuses(context):
            caller = self._access.caller(context)
            if caller is not None:
                caller.stamp(request)
            left_s = context.time_remaining()
            deadline_s = None if left_s is None else time.monotonic() + left_s
            outlet = StreamOutlet(context)
            await self._pipeline.run(request, deadline_s, _traceparent(context), outlet)

    async def Link(  # type: ignore[override]
        self,
        request_iterator: AsyncIterator[router_pb2.RouterServiceLinkRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        """Serves many requests of one client until it hangs up; they end with the link."""
        async with statuses(context):
            caller = self._access.caller(context)
        await serve_link(ROUTER_LINK, partial(self._serve, caller), context, self._pace)

    async def _serve(self, caller: Caller | None, call: RouterCall) -> None:
        if caller is not None:
            caller.stamp(call.start.start)
        outlet = TicketCall(call) if call.start.wants_ticket else LinkOutlet(call)
        await self._pipeline.run(call.start.start, call.deadline_s, call.traceparent, outlet)

    async def ListModels(
        self,
        request: router_pb2.ListModelsRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> router_pb2.ListModelsResponse:
        """Lists the model while a worker serves it."""
        async with statuses(context):
            self._access.caller(context)
        if not self._candidates.has_decode:
            return router_pb2.ListModelsResponse()
        model = router_pb2.Model(
            name=self._model.name,
            context_length=self._candidates.context_length,
            block_size=self._candidates.block_size,
        )
        return router_pb2.ListModelsResponse(models=[model])

    async def GetFleet(
        self,
        request: router_pb2.GetFleetRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> router_pb2.GetFleetResponse:
        """Shows the workers as this router sees them."""
        async with statuses(context):
            self._access.check_operator(context)
        views = [
            *self._fleet.workers(WorkerRole.PREFILL),
            *self._fleet.workers(WorkerRole.DECODE),
        ]
        now_s = time.monotonic()
        return router_pb2.GetFleetResponse(
            workers=[
                worker_info(view.record, view.stats, view.age_s(now_s))
                for view in sorted(views, key=lambda it: it.record.worker_id)
            ],
            state_age=age_message(self._fleet.age_s),
            active_requests=self._metrics.active,
            admission_services=self._permits.services,
            requests_without_permit=self._permits.failed_open.total(),
            slo=self._book.recent_attainment(),
        )

    async def Route(
        self,
        request: router_pb2.RouteRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> router_pb2.RouteResponse:
        """Advises where a request should go; holds no permit and reserves nothing."""
        async with statuses(context):
            self._access.check_operator(context)
            placed = await self._pipeline.route(request.request)
        return router_pb2.RouteResponse(decision=decision_message(placed))

    async def Explain(
        self,
        request: router_pb2.ExplainRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> router_pb2.ExplainResponse:
        """Explains the placement of a recent request."""
        async with statuses(context):
            self._access.check_operator(context)
            explanation = self._explanations.get(request.request_id)
            if explanation is None:
                raise InvalidRequestError(
                    f"this router knows no request {request.request_id!r}: it was another one's, "
                    "or too many came since",
                    reason="UNKNOWN_REQUEST",
                    field="request_id",
                )
        return explanation_message(request.request_id, explanation)

    async def ListRequests(
        self,
        request: router_pb2.ListRequestsRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> router_pb2.ListRequestsResponse:
        """Lists running and recent requests."""
        async with statuses(context):
            self._access.check_operator(context)
        targets = self._book.targets
        return router_pb2.ListRequestsResponse(
            requests=self._book.newest(request.limit or DEFAULT_LISTED),
            attainment=self._book.attainment(),
            targets=router_pb2.Slo(ttft=duration(targets.ttft_s), tpot=duration(targets.tpot_s)),
        )


def _traceparent(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == TRACEPARENT:
            return value if isinstance(value, str) else value.decode(errors="replace")
    return ""
