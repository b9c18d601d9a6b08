"""AdmissionService: link frames to requests for permits, and verdicts back to frames."""

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc

from baton.errors import InvalidRequestError
from baton.requests import Priority
from baton.rpc.link_server import ServedCall, serve_link
from baton.rpc.links import ADMISSION_LINK
from baton.telemetry.names import (
    ATTR_ADMISSION_VERDICT,
    ATTR_PREDICTED_TTFT_S,
    ATTR_PRIORITY,
    ATTR_REQUEST_ID,
    ATTR_TENANT,
    SPAN_ADMIT,
)
from baton.telemetry.providers import Telemetry
from baton.v1 import admission_link_pb2, admission_pb2, admission_pb2_grpc
from services.admission.desk import Grant, PermitDesk
from services.admission.policy import Admit, PermitRequest, Verdict, Wait

logger = logging.getLogger(__name__)

SERVICE = "baton.v1.AdmissionService"

Call = ServedCall[admission_link_pb2.AdmissionCommand, admission_link_pb2.AdmissionEvent]


class AdmissionServer(admission_pb2_grpc.AdmissionServiceServicer):
    """Serves the links of all routers from one desk."""

    def __init__(self, desk: PermitDesk, telemetry: Telemetry) -> None:
        self._desk = desk
        self._telemetry = telemetry

    # The read-write form of grpc.aio returns nothing.
    async def Link(  # type: ignore[override]
        self,
        request_iterator: AsyncIterator[admission_link_pb2.AdmissionServiceLinkRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        """Serves one router until it hangs up; its permits end with the link."""
        await serve_link(ADMISSION_LINK, self._serve, context)

    async def GetState(
        self,
        request: admission_pb2.AdmissionServiceGetStateRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> admission_pb2.AdmissionServiceGetStateResponse:
        """Shows the permits and queues."""
        load = self._desk.load
        return admission_pb2.AdmissionServiceGetStateResponse(
            prefill_permits=load.prefill_permits,
            decode_permits=load.decode_permits,
            queued_requests=load.waiting_ahead,
            prefill_s_per_request=load.prefill_s,
            decode_s_per_request=load.decode_s,
        )

    async def _serve(self, call: Call) -> None:
        request = _to_request(call.start.start)
        async with AsyncExitStack() as permit:
            with self._telemetry.span(SPAN_ADMIT, call.traceparent, _attributes(request)) as span:
                verdict = self._desk.decide(request)
                span.set_attribute(ATTR_ADMISSION_VERDICT, _name_of(verdict))
                span.set_attribute(ATTR_PREDICTED_TTFT_S, verdict.predicted_ttft_s)
                admission = self._desk.admit(verdict, request, lambda at: _send_queued(call, at))
                grant = await permit.enter_async_context(admission)
            await call.send(_granted(grant, verdict))
            await self._follow(call, grant)

    async def _follow(self, call: Call, grant: Grant) -> None:
        """Keeps the permit until the router ends its request, which cancels this."""
        while True:
            command = await call.next_command()
            if command.WhichOneof("command") == "prefill_done":
                self._desk.prefill_done(grant)


async def _send_queued(call: Call, position: int) -> None:
    queued = admission_link_pb2.AdmissionQueued(position=position)
    await call.send(admission_link_pb2.AdmissionEvent(queued=queued))


def _granted(grant: Grant, verdict: Verdict) -> admission_link_pb2.AdmissionEvent:
    return admission_link_pb2.AdmissionEvent(
        granted=admission_link_pb2.AdmissionGranted(
            waited_s=grant.waited_s, predicted_ttft_s=verdict.predicted_ttft_s
        )
    )


def _name_of(verdict: Verdict) -> str:
    if isinstance(verdict, Admit):
        return "granted"
    return "queued" if isinstance(verdict, Wait) else "rejected"


def _attributes(request: PermitRequest) -> dict[str, str]:
    return {
        ATTR_REQUEST_ID: request.request_id,
        ATTR_PRIORITY: request.priority.name.lower(),
        ATTR_TENANT: request.tenant,
    }


def _to_request(start: admission_link_pb2.AdmissionStart) -> PermitRequest:
    return PermitRequest(
        request_id=start.request_id,
        tenant=start.tenant,
        priority=_to_priority(start.priority),
        prompt_tokens=start.prompt_tokens,
        uncached_tokens=start.uncached_tokens,
        max_tokens=start.max_tokens,
        ttft_slo_s=start.ttft_slo_s if start.HasField("ttft_slo_s") else None,
        tpot_slo_s=start.tpot_slo_s if start.HasField("tpot_slo_s") else None,
    )


def _to_priority(number: int) -> Priority:
    try:
        return Priority(number or Priority.NORMAL)
    except ValueError:
        raise InvalidRequestError(f"unknown priority {number}", field="priority") from None
