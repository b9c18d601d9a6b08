"""Asking admission for a permit, and going on without one when nobody is there to ask."""

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from baton.errors import BatonError, CancelledByPeerError, UnavailableError
from baton.requests import Priority
from baton.rpc.link import LinkCall, LinkPool
from baton.rpc.pace import LONGEST_S
from baton.state.fleet import FleetView
from baton.state.members import WorkerView
from baton.state.records import WorkerRole
from baton.v1 import admission_link_pb2, types_pb2
from services.router.ahead import Allowances

logger = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 2.0
"""Admission answers at once, if only that the request waits; a silent one is taken for dead."""

AHEAD_HOLD_S = 0.002
"""Admission is told this much later of what started ahead, so that the prompt's own message leaves
first. Seconds."""

AHEAD = "ahead"
FAIL_OPEN = "fail_open"
GRANTED = "granted"
QUEUED = "queued"
NO_ADMISSION = "NO_ADMISSION"
NO_ADMISSION_RETRY_S = 1.0

AdmissionCall = LinkCall[admission_link_pb2.AdmissionCommand, admission_link_pb2.AdmissionEvent]


@dataclass(frozen=True, slots=True)
class PermitNeed:
    """What a permit is asked for."""

    request_id: str
    tenant: str
    priority: Priority
    prompt_tokens: int
    uncached_tokens: int
    max_tokens: int
    ttft_slo_s: float | None
    tpot_slo_s: float | None


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class HeldPermit:
    """The right to run.

    `verdict` is "granted", "queued", "ahead" for what started before it was answered or, without
    admission, "fail_open". `computed` is to be called when the prompt is.
    """

    verdict: str
    call: AdmissionCall | None = None
    computed: Callable[[], None] = _nothing
    max_tokens: int | None = None
    degradations: tuple[str, ...] = ()
    prefers_local_prefill: bool = False
    scheduling_priority: Priority | None = None

    def prefill_done(self) -> None:
        """Tells admission that the prompt is computed."""
        self.computed()
        if self.call is not None:
            done = admission_link_pb2.AdmissionPrefillDone()
            self.call.send(admission_link_pb2.AdmissionCommand(prefill_done=done), LONGEST_S)

    def finished(self, output_tokens: int) -> None:
        """Tells admission how long an answer that ended by itself was."""
        if self.call is not None:
            finished = admission_link_pb2.AdmissionFinished(output_tokens=output_tokens)
            self.call.send(admission_link_pb2.AdmissionCommand(finished=finished), LONGEST_S)


class PermitClient:
    """Holds permits for this router's requests.

    `failed_open` counts requests that ran without one, `failed_closed` those refused because no
    admission service answered, which is what the classes in `closed` get then.
    """

    def __init__(
        self,
        fleet: FleetView,
        links: "LinkPool[Any, Any]",
        closed: Collection[Priority] = (),
    ) -> None:
        self._fleet = fleet
        self._links = links
        self._closed = frozenset(closed)
        self._turn = itertools.count()
        self._allowances = Allowances()
        self.failed_open: Counter[Priority] = Counter()
        self.failed_closed: Counter[Priority] = Counter()

    @property
    def services(self) -> int:
        """Admission services that are known now."""
        return len(self._fleet.workers(WorkerRole.ADMISSION))

    @asynccontextmanager
    async def permit(
        self, need: PermitNeed, deadline_s: float | None, traceparent: str
    ) -> AsyncIterator[HeldPermit]:
        """Holds a permit for the length of the block; `deadline_s` is at the monotonic clock.

        Raises what admission raised when it rejects. Where no admission service answers, the
        request goes on without a permit, or, of a class that fails closed, raises UnavailableError
        (NO_ADMISSION).
        """
        held = await self._first_answer(need, deadline_s, traceparent)
        try:
            yield held
        finally:
            held.computed()
            if held.call is not None:
                held.call.request_cancel(LONGEST_S)

    async def _first_answer(
        self, need: PermitNeed, deadline_s: float | None, traceparent: str
    ) -> HeldPermit:
        for view in self._in_turn():
            service = view.record.address
            has_started = self._may_start(service, need)
            command = admission_link_pb2.AdmissionCommand(start=_start(need, has_started))
            left_s = None if deadline_s is None else deadline_s - time.monotonic()
            verdict = _Verdict(
                partial(self._allowances.take, service, need.priority, need.uncached_tokens)
            )
            call = self._links.link(service).open(
                command,
                timeout_s=left_s,
                traceparent=traceparent,
                receiver=verdict,
                hold_s=AHEAD_HOLD_S if has_started else 0.0,
            )
            if has_started:
                verdict.expect_nothing()
                return HeldPermit(AHEAD, call, self._computing(service, call))
            held = None
            try:
                granted = await verdict.granted
                held = _held(call, granted, verdict.name, self._computing(service, call))
            except (UnavailableError, CancelledByPeerError) as error:
                if not _is_gone(error):
                    raise
                logger.warning("admission gone worker=%s: %s", view.record.worker_id, error)
            finally:
                verdict.silence.cancel()
                if held is None:
                    call.request_cancel(LONGEST_S)
            if held is not None:
                return held
        if need.priority in self._closed:
            self.failed_closed[need.priority] += 1
            raise UnavailableError(
                f"no admission service answers and {need.priority.name.lower()} priority is "
                "configured to fail closed; start one or retry",
                reason=NO_ADMISSION,
                retry_after_s=NO_ADMISSION_RETRY_S,
            )
        self.failed_open[need.priority] += 1
        return HeldPermit(FAIL_OPEN)

    def _may_start(self, service: str, need: PermitNeed) -> bool:
        """Tells whether the request may start before it is answered.

        Not one with targets of its own, nor of a class that runs with a permit or not at all.
        """
        if need.ttft_slo_s is not None or need.tpot_slo_s is not None:
            return False
        if need.priority in self._closed:
            return False
        return self._allowances.allows(service, need.priority, need.uncached_tokens)

    def _computing(self, service: str, call: AdmissionCall) -> Callable[[], None]:
        self._allowances.begin(service, call)
        return partial(self._allowances.end, service, call)

    def _in_turn(self) -> Sequence[WorkerView]:
        """Returns the admission services, another one first each time: they share the limits."""
        views = self._fleet.workers(WorkerRole.ADMISSION)
        first = next(self._turn) % len(views) if views else 0
        return [*views[first:], *views[:first]]


class _Verdict:
    """Receives what admission says; see baton.rpc.link.Receiver.

    `granted` fails with what admission refuses with, and with UnavailableError (PEER_SILENT) when
    nothing comes at first; `silence` is the timer of that. `allow` takes how many prompts like this
    one may start ahead.
    """

    def __init__(self, allow: Callable[[int], None]) -> None:
        loop = asyncio.get_running_loop()
        self.name = GRANTED
        self._allow = allow
        self.granted: asyncio.Future[admission_link_pb2.AdmissionGranted] = loop.create_future()
        self.silence = loop.call_later(ANSWER_TIMEOUT_S, self._hear_nothing)

    def deliver(self, event: Any, kind: str) -> None:
        self.silence.cancel()
        if kind == QUEUED:
            self.name = QUEUED
        elif kind == GRANTED:
            self._allow(event.granted.ahead)
            if not self.granted.done():
                self.granted.set_result(event.granted)

    def expect_nothing(self) -> None:
        """Whatever comes changes nothing for the request any more."""
        self.silence.cancel()
        self.granted.cancel()

    def end(self, error: BatonError | None) -> None:
        self._fail(error or UnavailableError("admission ended the request", reason="PEER_LOST"))

    def _hear_nothing(self) -> None:
        self._fail(UnavailableError("admission does not answer", reason="PEER_SILENT"))

    def _fail(self, error: BatonError) -> None:
        if not self.granted.done():
            self.granted.set_exception(error)


def _held(
    call: AdmissionCall,
    granted: admission_link_pb2.AdmissionGranted,
    verdict: str,
    computed: Callable[[], None],
) -> HeldPermit:
    return HeldPermit(
        verdict=verdict,
        call=call,
        computed=computed,
        max_tokens=granted.max_tokens if granted.HasField("max_tokens") else None,
        degradations=tuple(granted.degradations),
        prefers_local_prefill=granted.prefers_local_prefill,
        scheduling_priority=Priority(granted.scheduling_priority)
        if granted.HasField("scheduling_priority")
        else None,
    )


def _is_gone(error: BatonError) -> bool:
    """Tells a service that is not there from one that says no."""
    return isinstance(error, CancelledByPeerError) or error.reason in ("PEER_LOST", "PEER_SILENT")


def _start(need: PermitNeed, has_started: bool) -> admission_link_pb2.AdmissionStart:
    return admission_link_pb2.AdmissionStart(
        request_id=need.request_id,
        tenant=need.tenant,
        priority=types_pb2.Priority.ValueType(need.priority),
        prompt_tokens=need.prompt_tokens,
        uncached_tokens=need.uncached_tokens,
        max_tokens=need.max_tokens,
        ttft_slo_s=need.ttft_slo_s,
        tpot_slo_s=need.tpot_slo_s,
        has_started=has_started,
    )
