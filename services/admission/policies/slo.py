"""Early rejection on the larger of two loads: prefill's and decode's, 1 where the target breaks.

    prefill load = predicted TTFT / TTFT limit
    decode load  = streams / what the target for the time per token allows (or the KV's share)

`SloNowPolicy` looks at the decode set of this moment. That is stale by the time the prefill takes:
accepted prompts do not count until they decode, so too many are accepted, later too few, and the
two pools swing in anti-phase (Mooncake, FAST'25, section 7). `PredictivePolicy` looks at the decode
set of the moment when the request would join it: the streams now, plus everything accepted before
it, minus those that will have ended.
"""

from collections.abc import Mapping
from types import MappingProxyType

from baton.requests import Priority
from services.admission.policy import (
    DECODE_SATURATED,
    TTFT_UNATTAINABLE,
    Accept,
    MeshLoad,
    PermitRequest,
    QosLimits,
    Reject,
    Streams,
    Verdict,
)

TTFT_SHARE = 0.8
"""Share of a TTFT target that a prediction may take: the rest is for its error."""

DECODE_WAIT_SHARE = 0.5
"""Share of a TTFT target that a request may wait until the decode pool has room for it."""

LATEST_SHARE = 0.9
"""A prompt that would not be computed by this share of its target is given up."""

CEILINGS: Mapping[Priority, float] = MappingProxyType(
    {Priority.LOW: 0.75, Priority.NORMAL: 0.85, Priority.HIGH: 1.0}
)
"""Decode load up to which a class is let in; what is above belongs to the classes above."""

HYSTERESIS = 0.02
"""After a class was turned away its ceiling is this much lower until it is let in again."""

SHORT_BACKLOG_SHARE = 0.1
"""Workers are given prompts for this share of the TTFT target ahead: enough for routers to see that
decode workers would compute some of them sooner. What waits longer does so in the central queue,
where tenants take turns and no worker is chosen yet."""

PROMPTS_PER_WORKER: Mapping[Priority, int] = MappingProxyType(
    {Priority.LOW: 1, Priority.NORMAL: 2, Priority.HIGH: 2}
)
"""One that is computed and one that follows without a pause. Low priority starts on free workers
only: behind others it would be overtaken there by whoever comes later."""

_DRAIN_STEPS_S = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)


class SloNowPolicy:
    """Rejects on today's loads: predicted TTFT, and the time per token of today's decode set."""

    name = "slo_now"

    def __init__(self, limits: QosLimits) -> None:
        self._limits = limits

    def decide(self, now_s: float, load: MeshLoad, request: PermitRequest) -> Verdict:
        """See AdmissionPolicy."""
        late = _too_late(load, request, self._limits)
        if late is not None:
            return late
        decode = load.decode.load(load.streams, self._limits.tpot_limit_s(request))
        if decode > CEILINGS[request.priority] and _is_bound(request, self._limits):
            drain_s = load.decode_s / max(load.decode_permits, 1)
            return Reject(DECODE_SATURATED, load.ttft_s, drain_s)
        return _accept(load, request, self._limits, decode)

    def may_start(self, now_s: float, load: MeshLoad, request: PermitRequest) -> bool:
        """See AdmissionPolicy: the workers' own queues stay short."""
        return has_prefill_room(load, self._limits.ttft_slo_s, request.priority)

    def is_hopeless(self, waited_s: float, work_s: float, request: PermitRequest) -> bool:
        """See AdmissionPolicy: a prompt that comes too late is not worth computing."""
        return _has_waited_too_long(waited_s, work_s, request, self._limits)


class PredictivePolicy:
    """Rejects on the loads at the moment when the request's prefill will have ended."""

    name = "predictive"

    def __init__(self, limits: QosLimits) -> None:
        self._limits = limits
        self._turns_away: set[Priority] = set()

    def decide(self, now_s: float, load: MeshLoad, request: PermitRequest) -> Verdict:
        """See AdmissionPolicy.

        A request whose prefill would end too early for the decode pool may wait for it as long as
        its target allows.
        """
        late = _too_late(load, request, self._limits)
        if late is not None:
            return late
        tpot_s, prompt = self._limits.tpot_limit_s(request), request.prompt_tokens
        decode = load.decode.load(load.forecast.at(load.ttft_s).plus(1, prompt), tpot_s)
        if not _is_bound(request, self._limits):
            return _accept(load, request, self._limits, decode)
        ceiling = self._ceiling(request.priority)
        if decode > ceiling and not self._finds_room(load, request, ceiling):
            self._turns_away.add(request.priority)
            return Reject(DECODE_SATURATED, load.ttft_s, self._drain_s(load, request, ceiling))
        self._turns_away.discard(request.priority)
        return _accept(load, request, self._limits, decode)

    def may_start(self, now_s: float, load: MeshLoad, request: PermitRequest) -> bool:
        """See AdmissionPolicy: room for the prompt now, and for its stream when it is computed."""
        if not has_prefill_room(load, self._limits.ttft_slo_s, request.priority):
            return False
        if not _is_bound(request, self._limits):
            return True
        streams = load.forecast.at(load.ttft_s).plus(1, request.prompt_tokens)
        tpot_s = self._limits.tpot_limit_s(request)
        # Who was let in at the ceiling must not wait for what the forecast is wrong by.
        return load.decode.load(streams, tpot_s) <= CEILINGS[request.priority] + HYSTERESIS

    def is_hopeless(self, waited_s: float, work_s: float, request: PermitRequest) -> bool:
        """See AdmissionPolicy: a prompt that comes too late is not worth computing."""
        return _has_waited_too_long(waited_s, work_s, request, self._limits)

    def _finds_room(self, load: MeshLoad, request: PermitRequest, ceiling: float) -> bool:
        """Tells whether the decode pool will have room soon enough, after all accepted before."""
        longest_s = DECODE_WAIT_SHARE * self._limits.ttft_limit_s(request)
        horizon_s = min(longest_s, self._limits.wait_limit_s(request))
        streams = load.forecast.at(horizon_s, held_back=True).plus(1, request.prompt_tokens)
        return load.decode.load(streams, self._limits.tpot_limit_s(request)) <= ceiling

    def _ceiling(self, priority: Priority) -> float:
        lowered = HYSTERESIS if priority in self._turns_away else 0.0
        return CEILINGS[priority] - lowered

    def _drain_s(self, load: MeshLoad, request: PermitRequest, ceiling: float) -> float:
        """Returns in how many seconds the decode set is predicted to have room."""
        tpot_s = self._limits.tpot_limit_s(request)
        for horizon_s in _DRAIN_STEPS_S:
            streams: Streams = load.forecast.at(horizon_s).plus(1, request.prompt_tokens)
            if load.decode.load(streams, tpot_s) <= ceiling:
                return horizon_s
        return _DRAIN_STEPS_S[-1]


def has_prefill_room(load: MeshLoad, ttft_slo_s: float, priority: Priority) -> bool:
    """Tells whether the workers should be given one more prompt; see SHORT_BACKLOG_SHARE."""
    if not load.has_slot:
        return False
    workers = max(load.computing_workers, 1)
    if load.prefill_permits < PROMPTS_PER_WORKER[priority] * workers:
        return True
    return load.backlog_s < SHORT_BACKLOG_SHARE * ttft_slo_s * workers


def _is_bound(request: PermitRequest, limits: QosLimits) -> bool:
    """Tells whether the request may be turned away for what it would find."""
    return limits.ttft_limit_s(request) < float("inf")


def _has_waited_too_long(
    waited_s: float, work_s: float, request: PermitRequest, limits: QosLimits
) -> bool:
    return waited_s + work_s > LATEST_SHARE * limits.ttft_limit_s(request)


def _accept(load: MeshLoad, request: PermitRequest, limits: QosLimits, decode: float) -> Accept:
    """Returns the acceptance with the larger load: of the decode pool as a share of the class's
    ceiling, and the wait as a share of what the request's own prompt leaves of its target."""
    spare_s = TTFT_SHARE * limits.ttft_limit_s(request) - (load.ttft_s - load.wait_s)
    spare_s = min(spare_s, limits.wait_limit_s(request))
    prefill = min(1.0, load.wait_s / spare_s) if spare_s > 0 else float(load.wait_s > 0)
    return Accept(load.ttft_s, max(prefill, decode / CEILINGS[request.priority]))


def _too_late(load: MeshLoad, request: PermitRequest, limits: QosLimits) -> Reject | None:
    if load.wait_s == 0.0:
        # Nothing is before it: nobody could serve it sooner.
        return None
    late_s = load.ttft_s - TTFT_SHARE * limits.ttft_limit_s(request)
    late_s = max(late_s, load.queue_s - limits.wait_limit_s(request))
    return None if late_s <= 0 else Reject(TTFT_UNATTAINABLE, load.ttft_s, late_s)
