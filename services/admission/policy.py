"""Who may enter the mesh, when, and who is turned away. Pure: state in, verdict out.

A policy answers two questions. At the door (`decide`): is this request worth accepting, now or
after a wait? And each time a waiting request's turn has come (`may_start`): is there room for it
on the workers? What stands between the two, the queue, is `services.admission.waiting`; policies
are in services/admission/policies/.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from baton.latency import CostModel
from baton.requests import Priority

QUEUE_FULL = "QUEUE_FULL"
TTFT_UNATTAINABLE = "TTFT_UNATTAINABLE"
DECODE_SATURATED = "DECODE_SATURATED"
TENANT_LIMIT = "TENANT_LIMIT"

DECODE_SLOTS = 64
"""Generations that one decode worker is given at once where nothing better is known. Requests."""

DECLARED_COSTS = CostModel()


@dataclass(frozen=True, slots=True)
class PermitRequest:
    """A request that asks to enter. Targets of its own are in seconds; None takes the fleet's.

    `deadline_s` is the client's, at admission's clock; None without one. What `has_started` is let
    in whatever the load: a grant before it said so.
    """

    request_id: str
    tenant: str = ""
    priority: Priority = Priority.NORMAL
    prompt_tokens: int = 0
    uncached_tokens: int = 0
    max_tokens: int = 0
    ttft_slo_s: float | None = None
    tpot_slo_s: float | None = None
    deadline_s: float | None = None
    has_started: bool = False


class Streams(NamedTuple):
    """Generations that run together and the tokens that they hold; expected values may be broken.

    Numbers are of the whole decode pool.
    """

    sequences: float
    tokens: float

    def plus(self, sequences: float, tokens: float) -> "Streams":
        """Returns these and some more."""
        return Streams(self.sequences + sequences, self.tokens + tokens)


NO_STREAMS = Streams(0.0, 0.0)


class DecodeForecast(Protocol):
    """The decode pool's streams at a later moment, all accepted work counted exactly once."""

    def at(self, horizon_s: float, *, held_back: bool = False) -> Streams:
        """Returns the streams expected in `horizon_s` seconds.

        Accepted prompts are computed evenly until then; `held_back`, they join only at its end,
        as where the decode pool is what they wait for.
        """
        ...


@dataclass(frozen=True, slots=True)
class DecodePool:
    """What the decode workers are: how many, what a step costs, how much KV each holds.

    `bias` is how many times longer a token really took than the costs say. `kv_tokens` is 0 where
    it is not known.
    """

    workers: int = 0
    costs: CostModel = DECLARED_COSTS
    bias: float = 1.0
    kv_tokens: int = 0

    @property
    def capacity(self) -> int:
        """Permits that may be live at once: what the pool's slots hold."""
        return self.workers * DECODE_SLOTS

    def tpot_s(self, streams: Streams) -> float:
        """Returns the time per token when the streams are spread evenly."""
        workers = max(self.workers, 1)
        base, each, token = self.costs.step
        step_s = base + (each * streams.sequences + token * streams.tokens) / workers
        return self.bias * step_s

    def load(self, streams: Streams, tpot_slo_s: float) -> float:
        """Returns the load: the streams' share of what the target allows, or the KV's in use.

        1 is where tokens take as long as they may, or the KV is full. Where steps are not measured
        yet only the KV counts, and the slots bound what runs. Streams that have a worker each could
        not be served faster, whatever their target, so their time is no load.
        """
        workers = max(self.workers, 1)
        kv = streams.tokens / (workers * self.kv_tokens) if self.kv_tokens else 0.0
        if not self.costs.knows_step or streams.sequences <= workers:
            return kv
        base, each, token = self.costs.step
        taken_s = (each * streams.sequences + token * streams.tokens) / workers
        allowed_s = tpot_slo_s / self.bias - base
        if allowed_s <= 0:
            return max(kv, streams.sequences / workers)
        return max(kv, taken_s / allowed_s)


class NoForecast:
    """Stands in where nobody forecasts: an idle decode pool."""

    def at(self, horizon_s: float, *, held_back: bool = False) -> Streams:
        """See DecodeForecast."""
        return NO_STREAMS


_IDLE = NoForecast()


@dataclass(frozen=True, slots=True)
class MeshLoad:
    """The mesh as one request finds it.

    `prefill_permits` and `decode_permits` are granted and not over; `waiting_ahead` wait for a
    permit with the same or a higher priority. `prefill_s` is the worker time that one prompt took
    on average and `decode_s` the time that one generation held its slot; 0 while unknown.

    `backlog_s` is the worker time that the granted prompts still need, `ahead_s` what those who
    wait ahead will need, and `own_s` what the request itself needs. `overtaken` is the share of
    the prefill pool that higher classes take as they come: they go first in every queue. `streams`
    generate now.
    `free_slots` bounds what this admission service may grant where it shares the slots with others.
    """

    prefill_workers: int
    decode_workers: int
    prefill_permits: int = 0
    decode_permits: int = 0
    waiting_ahead: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    backlog_s: float = 0.0
    ahead_s: float = 0.0
    own_s: float = 0.0
    overtaken: float = 0.0
    decode: DecodePool = field(default_factory=DecodePool)
    streams: Streams = NO_STREAMS
    forecast: DecodeForecast = field(default=_IDLE, repr=False)
    free_slots: int | None = None

    @property
    def capacity(self) -> int:
        """Permits that may be live at once."""
        return self.decode_workers * DECODE_SLOTS

    @property
    def computing_workers(self) -> int:
        """Workers that compute prompts; decode workers where there are no others."""
        return self.prefill_workers or self.decode_workers

    @property
    def has_slot(self) -> bool:
        """True when fewer permits are live than the decode pool has slots."""
        if self.free_slots is not None and self.free_slots < 1:
            return False
        return self.prefill_permits + self.decode_permits < self.capacity

    @property
    def queue_s(self) -> float:
        """Seconds that the workers need for all accepted work before the request's prompt."""
        workers = max(self.computing_workers, 1)
        running = self.prefill_permits
        if running + self.waiting_ahead < workers:
            return 0.0
        # The workers' current prompts are partly done; with a full house the first ends early.
        granted_s = self.backlog_s * max(0, running - workers + 1) / max(running, 1)
        return (granted_s + self.ahead_s) / workers

    @property
    def wait_s(self) -> float:
        """Seconds until a worker turns to the request's prompt: the queue, and who overtakes it."""
        return self.queue_s / (1 - self.overtaken)

    @property
    def ttft_s(self) -> float:
        """Seconds to the first token that a request arriving now is predicted to see."""
        return self.wait_s + self.own_s / (1 - self.overtaken)


@dataclass(frozen=True, slots=True)
class Accept:
    """Take it in; it starts when its turn has come and there is room.

    `load` is the larger of the prefill and the decode load that it finds, 1 at the limit.
    """

    predicted_ttft_s: float
    load: float = 0.0


@dataclass(frozen=True, slots=True)
class Reject:
    """Turn it away; in `drain_s` the backlog should have drained enough."""

    reason: str
    predicted_ttft_s: float
    drain_s: float


Verdict = Accept | Reject


class AdmissionPolicy(Protocol):
    """Decides about one request. `now_s` is any clock that only goes forward."""

    name: str

    def decide(self, now_s: float, load: MeshLoad, request: PermitRequest) -> Verdict:
        """Returns the verdict at the door; changes nothing in `load`."""
        ...

    def may_start(self, now_s: float, load: MeshLoad, request: PermitRequest) -> bool:
        """Tells whether the request may start now that nobody is before it.

        `load` has it neither among those who wait nor among the permits.
        """
        ...

    def is_hopeless(self, waited_s: float, work_s: float, request: PermitRequest) -> bool:
        """Tells whether a waiting request, whose prompt takes `work_s`, cannot be in time any more.

        Then it is turned away before anything was computed for it.
        """
        ...


@dataclass(frozen=True, slots=True)
class QosLimits:
    """What policies enforce; times in seconds."""

    enable_early_rejection: bool = True
    low_priority_threshold_s: float = 0.5
    reject_on_slo_violation: bool = True
    ttft_slo_s: float = 2.0
    tpot_slo_s: float = 0.2

    def ttft_limit_s(self, request: PermitRequest) -> float:
        """Returns the predicted TTFT above which the request is turned away; may be infinite.

        High priority is always let in.
        """
        if not self.enable_early_rejection or request.priority is Priority.HIGH:
            return math.inf
        if request.priority is Priority.NORMAL and not self.reject_on_slo_violation:
            return math.inf
        return self.ttft_slo_s if request.ttft_slo_s is None else request.ttft_slo_s

    def wait_limit_s(self, request: PermitRequest) -> float:
        """Returns the predicted wait above which the request is turned away; may be infinite.

        Low priority is held to its threshold, which is about what others want at that moment, so
        its own prompt does not count.
        """
        limit_s = self.ttft_limit_s(request)
        if self.enable_early_rejection and request.priority is Priority.LOW:
            return min(self.low_priority_threshold_s, limit_s)
        return limit_s

    def tpot_limit_s(self, request: PermitRequest) -> float:
        """Returns the target for the time per token that holds for the request."""
        return self.tpot_slo_s if request.tpot_slo_s is None else request.tpot_slo_s
