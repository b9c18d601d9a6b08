"""Who may enter the mesh now, who waits and who is turned away. Pure: state in, verdict out."""

import random
from dataclasses import dataclass
from typing import Protocol

from baton.requests import Priority

QUEUE_FULL = "QUEUE_FULL"
TTFT_UNATTAINABLE = "TTFT_UNATTAINABLE"

DECODE_SLOTS = 64
"""Generations that one decode worker runs at once by continuous batching. Requests."""

_RETRY_MIN_S = 0.1
_RETRY_MAX_S = 30.0
_RETRY_JITTER = 0.5


@dataclass(frozen=True, slots=True)
class PermitRequest:
    """A request that asks to enter. Targets of its own are in seconds; None takes the fleet's."""

    request_id: str
    tenant: str = ""
    priority: Priority = Priority.NORMAL
    prompt_tokens: int = 0
    uncached_tokens: int = 0
    max_tokens: int = 0
    ttft_slo_s: float | None = None
    tpot_slo_s: float | None = None


@dataclass(frozen=True, slots=True)
class MeshLoad:
    """The mesh as one request finds it.

    `prefill_permits` and `decode_permits` are granted and not over; `waiting_ahead` wait for a
    permit with the same or a higher priority. `prefill_s` is the worker time that one prompt took
    on average and `decode_s` the time that one generation held its slot; 0 while unknown.
    """

    prefill_workers: int
    decode_workers: int
    prefill_permits: int = 0
    decode_permits: int = 0
    waiting_ahead: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0

    @property
    def capacity(self) -> int:
        """Permits that may be live at once."""
        return self.decode_workers * DECODE_SLOTS

    @property
    def has_room(self) -> bool:
        """True when a permit is free and nobody is before the request."""
        return (
            self.waiting_ahead == 0 and self.prefill_permits + self.decode_permits < self.capacity
        )


@dataclass(frozen=True, slots=True)
class Admit:
    """Let it in at once."""

    predicted_ttft_s: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Let it in when a permit is free and its turn has come."""

    predicted_ttft_s: float


@dataclass(frozen=True, slots=True)
class Reject:
    """Turn it away; `retry_after_s` is when the backlog should have drained enough."""

    reason: str
    predicted_ttft_s: float
    retry_after_s: float


Verdict = Admit | Wait | Reject


class AdmissionPolicy(Protocol):
    """Decides about one request. `now_s` is any clock that only goes forward."""

    def decide(self, now_s: float, load: MeshLoad, request: PermitRequest) -> Verdict:
        """Returns the verdict; changes nothing in `load`."""
        ...

    def trim(self, load: MeshLoad) -> Reject | None:
        """Returns what to tell the last in the queue when the queue is too long."""
        ...


def estimate_ttft_s(
    prefill_queue: float, avg_prefill_s: float, decode_queue: float, avg_decode_s: float
) -> float:
    """Returns the chapter's estimate: what is queued before a request, at its average time."""
    return prefill_queue * avg_prefill_s + decode_queue * avg_decode_s


@dataclass(frozen=True, slots=True)
class QosLimits:
    """What the policy enforces; times in seconds, the queue in requests."""

    enable_early_rejection: bool = True
    low_priority_threshold_s: float = 0.5
    reject_on_slo_violation: bool = True
    ttft_slo_s: float = 2.0
    max_queue_length: int = 256


class QueueEstimatePolicy:
    """The chapter's early rejection: queue lengths times average times against the TTFT target.

    A queue is what the pool cannot run at once, the new request included: prompts beyond one per
    prefill worker (decode workers stand in where there are none), generations beyond the slots of
    all decode workers. Each is shared by the pool's workers. A mesh with a free worker therefore
    predicts 0 and rejects nobody, whatever its averages say. Low priority is held to its threshold
    and normal priority to its target; high priority is always admitted, and when the queue is full
    it takes the place of the last one there.
    """

    def __init__(self, limits: QosLimits, rng: random.Random) -> None:
        self._limits = limits
        self._rng = rng

    def decide(self, now_s: float, load: MeshLoad, request: PermitRequest) -> Verdict:
        """See AdmissionPolicy; the estimate does not depend on the clock."""
        ttft_s = predict_ttft_s(load)
        limit_s = self._limit_s(request)
        if limit_s is not None and ttft_s > limit_s:
            return Reject(TTFT_UNATTAINABLE, ttft_s, self._retry_after_s(ttft_s - limit_s))
        if load.has_room:
            return Admit(ttft_s)
        if load.waiting_ahead >= self._limits.max_queue_length:
            return Reject(QUEUE_FULL, ttft_s, self._retry_after_s(_slot_wait_s(load)))
        return Wait(ttft_s)

    def trim(self, load: MeshLoad) -> Reject | None:
        """See AdmissionPolicy; `load` counts everybody as ahead."""
        if load.waiting_ahead <= self._limits.max_queue_length:
            return None
        return Reject(QUEUE_FULL, predict_ttft_s(load), self._retry_after_s(_slot_wait_s(load)))

    def _limit_s(self, request: PermitRequest) -> float | None:
        limits = self._limits
        if not limits.enable_early_rejection or request.priority is Priority.HIGH:
            return None
        if request.priority is Priority.LOW:
            return limits.low_priority_threshold_s
        if not limits.reject_on_slo_violation:
            return None
        return limits.ttft_slo_s if request.ttft_slo_s is None else request.ttft_slo_s

    def _retry_after_s(self, drain_s: float) -> float:
        """Spreads those turned away together, so that they do not come back together."""
        spread = 1 + _RETRY_JITTER * self._rng.random()
        return min(max(drain_s, _RETRY_MIN_S) * spread, _RETRY_MAX_S)


def predict_ttft_s(load: MeshLoad) -> float:
    """Returns the queueing part of the TTFT that a request arriving now would see."""
    prefill_workers = load.prefill_workers or load.decode_workers
    prefills = load.prefill_permits + load.waiting_ahead + 1 - prefill_workers
    generations = load.prefill_permits + load.decode_permits + load.waiting_ahead + 1
    return estimate_ttft_s(
        max(prefills, 0),
        load.prefill_s / max(prefill_workers, 1),
        max(generations - load.capacity, 0),
        _slot_wait_s(load),
    )


def _slot_wait_s(load: MeshLoad) -> float:
    """Returns the mean time until the next of the busy slots is free."""
    return load.decode_s / max(load.capacity, 1)
