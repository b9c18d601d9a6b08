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
from baton.v1 import admission_link_pb2, admission_pb2, admission_pb2_grpc, types_pb2
from services.admission.desk import Grant, PermitDesk
from services.admission.metrics import QUEUED, AdmissionCounters
from services.admission.policy import PermitRequest
from services.admission.state import state_message

logger = logging.getLogger(__name__)

SERVICE = "baton.v1.AdmissionService"

Call = ServedCall[admission_link_pb2.AdmissionCommand, admission_link_pb2.AdmissionEvent]


class AdmissionServer(admission_pb2_grpc.AdmissionServiceServicer):
    """Serves the links of all routers from one desk."""

    def __init__(self, desk: PermitDesk, telemetry: Telemetry) -> None:
        self._desk = desk
        self._telemetry = telemetry
        self._counters = AdmissionCounters(telemetry, desk)

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
        return state_message(self._desk)

    async def _serve(self, call: Call) -> None:
        request = _to_request(call)
        async with AsyncExitStack() as permit:
            with self._telemetry.span(SPAN_ADMIT, call.traceparent, _attributes(request)) as span:
                with self._counters.asking(request) as asked:

                    async def queued(position: int) -> None:
                        asked.verdict = QUEUED
                        await _send_queued(call, position)

                    grant = await permit.enter_async_context(self._desk.admit(request, queued))
                    asked.degradation = grant.degradation
                span.set_attribute(ATTR_ADMISSION_VERDICT, asked.verdict)
                span.set_attribute(ATTR_PREDICTED_TTFT_S, grant.predicted_ttft_s)
            await call.send(_granted(grant))
            await self._follow(call, grant)

    async def _follow(self, call: Call, grant: Grant) -> None:
        """Keeps the permit until the router ends its request, which cancels this."""
        try:
            while True:
                self._note(await call.next_command(), grant)
        finally:
            # The report of a request that ended travels with its cancel.
            for command in call.pending_commands():
                self._note(command, grant)

    def _note(self, command: admission_link_pb2.AdmissionCommand, grant: Grant) -> None:
        match command.WhichOneof("command"):
            case "prefill_done":
                self._desk.prefill_done(grant)
            case "finished":
                grant.output_tokens = command.finished.output_tokens


async def _send_queued(call: Call, position: int) -> None:
    queued = admission_link_pb2.AdmissionQueued(position=position)
    await call.send(admission_link_pb2.AdmissionEvent(queued=queued))


def _granted(grant: Grant) -> admission_link_pb2.AdmissionEvent:
    given = grant.degradation
    granted = admission_link_pb2.AdmissionGranted(
        waited_s=grant.waited_s,
        predicted_ttft_s=grant.predicted_ttft_s,
        max_tokens=given.max_tokens,
        degradations=given.names,
        prefers_local_prefill=given.prefers_local_prefill,
        ahead=grant.ahead,
    )
    if given.priority is not None:
        granted.scheduling_priority = types_pb2.Priority.ValueType(given.priority)
    return admission_link_pb2.AdmissionEvent(granted=granted)


def _attributes(request: PermitRequest) -> dict[str, str]:
    return {
        ATTR_REQUEST_ID: request.request_id,
        ATTR_PRIORITY: request.priority.name.lower(),
        ATTR_TENANT: request.tenant,
    }


def _to_request(call: Call) -> PermitRequest:
    start = call.start.start
    return PermitRequest(
        request_id=start.request_id,
        tenant=start.tenant,
        priority=_to_priority(start.priority),
        prompt_tokens=start.prompt_tokens,
        uncached_tokens=start.uncached_tokens,
        max_tokens=start.max_tokens,
        ttft_slo_s=start.ttft_slo_s if start.HasField("ttft_slo_s") else None,
        tpot_slo_s=start.tpot_slo_s if start.HasField("tpot_slo_s") else None,
        deadline_s=call.deadline_s,
        has_started=start.has_started,
    )


def _to_priority(number: int) -> Priority:
    try:
        return Priority(number or Priority.NORMAL)
    except ValueError:
        raise InvalidRequestError(f"unknown priority {number}", field="priority") from None
