"""Which workers a request goes to. Pure: views of the workers in, a decision out.

Here are the interface, the chapter's policy and the plainest one; services/router/policies/ has
those that predict or compare loads.

What a view says about caches comes from an index that may be behind: a wrong entry costs a miss,
never a wrong answer.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

from baton.latency import CostModel

STALE_AFTER_S = 3.0
"""Figures older than this say nothing about a worker's load. Seconds."""

MAX_PREFILL_CANDIDATES = 3
MAX_HOLDERS = 2

DECLARED_COSTS = CostModel()
"""What computing costs on a worker that nobody has measured."""


@dataclass(frozen=True, slots=True)
class PrefillView:
    """A prefill worker as a router sees it.

    `queue_length` counts the prompts waiting or being computed there and the router's own
    dispatches that its figures do not show yet, `queued_tokens` their uncached tokens and
    `queued_pairs` the token pairs that attention reads for them, None where nobody counts.
    `is_suspect` is true for a short time after a request failed there.
    """

    worker_id: str
    incarnation: str
    address: str
    queue_length: int = 0
    cached_tokens: int = 0
    stats_age_s: float = 0.0
    is_draining: bool = False
    is_suspect: bool = False
    queued_tokens: int = 0
    costs: CostModel = field(default=DECLARED_COSTS, repr=False)
    queued_pairs: float | None = None


@dataclass(frozen=True, slots=True)
class DecodeView:
    """A decode worker as a router sees it.

    `queue_length` counts the prompts waiting or being computed there, `decode_load` its running
    generations, both with the router's own dispatches that its figures do not show yet.
    `queued_tokens` are the uncached tokens of the prompts in its queue, with `queued_pairs` as for
    prefill workers, `resident_tokens` the KV
    of running generations; `kv_free_tokens` is room for more, None where it is not known.
    An engine may compute prompts only itself, or only have others compute them.
    """

    worker_id: str
    incarnation: str
    address: str
    queue_length: int = 0
    decode_load: int = 0
    cached_tokens: int = 0
    stats_age_s: float = 0.0
    is_draining: bool = False
    is_suspect: bool = False
    queued_tokens: int = 0
    resident_tokens: int = 0
    kv_free_tokens: int | None = None
    prefills_locally: bool = True
    takes_prefilled: bool = True
    costs: CostModel = field(default=DECLARED_COSTS, repr=False)
    queued_pairs: float | None = None
    standing: "StandingTerms" = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "standing", _standing_terms(self))


class StandingTerms(NamedTuple):
    """What a decode worker's load costs whoever comes, in seconds: the same for every request.

    `join_s` is its decode step now and `next_s` with one stream more, `ahead_s` the prompts in its
    queue, `streams` its running generations per token of an answer.
    """

    join_s: float
    next_s: float
    ahead_s: float
    streams: float


def _standing_terms(view: DecodeView) -> StandingTerms:
    costs, load = view.costs, view.decode_load
    base, each, token = costs.step
    join_s = base + each * load + token * view.resident_tokens
    ahead_s = 0.0
    if view.queue_length or view.queued_tokens:
        ahead_s = costs.queue_s(view.queue_length, view.queued_tokens, view.queued_pairs)
    return StandingTerms(join_s, join_s + each, ahead_s, load / costs.output_tokens)


@dataclass(frozen=True, slots=True)
class RouteRequest:
    """What placing a request depends on.

    The targets are the request's own; None leaves it to the fleet's trade-off.
    `preferred_decode` is the worker id that served its session last, a soft preference.
    """

    prompt_tokens: int
    kv_bytes_per_token: int = 0
    ttft_slo_s: float | None = None
    tpot_slo_s: float | None = None
    preferred_decode: str = ""


@dataclass(frozen=True, slots=True)
class Score:
    """Why a worker stood where it did: `total` is `prefix` - `queue` - `load`, in points."""

    worker_id: str
    prefix: float = 0.0
    queue: float = 0.0
    load: float = 0.0
    is_hotspot: bool = False

    @property
    def total(self) -> float:
        """The points by which workers are compared."""
        return self.prefix - self.queue - self.load


class Terms(NamedTuple):
    """What a placement is predicted to take, in seconds; the first four make the TTFT.

    `interference_s` is the price of what a local prefill does to the streams running there.
    """

    wait_s: float
    prefill_s: float
    transfer_s: float
    admit_s: float
    tpot_s: float
    interference_s: float = 0.0

    @property
    def ttft_s(self) -> float:
        """The predicted time to first token."""
        return self.wait_s + self.prefill_s + self.transfer_s + self.admit_s


class Option(NamedTuple):
    """One placement that was considered; without `prefill` the decode worker computes itself.

    `cost_s` is what placements are compared by: TTFT, priced TPOT and priced interference.
    """

    decode: DecodeView
    prefill: PrefillView | None
    terms: Terms
    cost_s: float


@dataclass(frozen=True, slots=True)
class Decision:
    """The decode worker, prefill workers to try (best first), and what led here.

    Policies that predict fill in `options`, best first, and `chosen` among them; the others
    `decode_scores` and `prefill_scores`, or nothing.
    """

    decode: DecodeView
    prefill_candidates: tuple[PrefillView, ...]
    policy: str
    decode_scores: tuple[Score, ...] = ()
    prefill_scores: tuple[Score, ...] = ()
    options: tuple[Option, ...] = ()
    chosen: Option | None = None
    holders: tuple[PrefillView | DecodeView, ...] = ()
    """Other workers that hold more of the prompt than the decode worker, longest first."""


def with_holders(
    decision: Decision, prefill: Sequence[PrefillView], decode: Sequence[DecodeView]
) -> Decision:
    """Returns the decision with the workers that a longer prefix could be pulled from."""
    have = decision.decode.cached_tokens
    views: tuple[PrefillView | DecodeView, ...] = (*decode, *prefill)
    longer = [
        view
        for view in views
        if view.cached_tokens > have and not (view.is_draining or view.is_suspect)
    ]
    if not longer:
        return decision
    longer.sort(key=lambda view: view.cached_tokens, reverse=True)
    return replace(decision, holders=tuple(longer[:MAX_HOLDERS]))


class RoutingPolicy(Protocol):
    """Places requests on workers."""

    name: str

    def choose(
        self,
        request: RouteRequest,
        prefill: Sequence[PrefillView],
        decode: Sequence[DecodeView],
    ) -> Decision:
        """Returns the placement; `decode` must not be empty, `prefill` may be.

        Workers that drain, have stale figures or are suspect are taken only where no other is left.
        """
        ...


@runtime_checkable
class StandingPolicy(RoutingPolicy, Protocol):
    """A policy that needs to see only a few workers: the least by its keys, and holders.

    Keys are what a worker's load costs whatever the request is, in one or more orders.
    """

    def prefill_keys(self, view: PrefillView) -> tuple[float, ...]:
        """Returns where a prefill worker stands; smaller is better."""
        ...

    def decode_keys(self, view: DecodeView) -> tuple[float, ...]:
        """Returns where a decode worker stands; smaller is better."""
        ...


View = TypeVar("View", PrefillView, DecodeView)


@dataclass(frozen=True, slots=True)
class ScoreWeights:
    """The chapter's weights. Points for a fully cached prompt, per waiting and per running one."""

    prefix_cache: float = 10.0
    queue_length: float = 1.5
    decode_load: float = 0.5
    min_cache_hit_ratio: float = 0.75
    enable_hotspot_prevention: bool = True


class WeightedPolicy:
    """The chapter's multi-factor score: cached share gains points, queue and load cost points.

    A cached share below `min_cache_hit_ratio` gains nothing. Hotspot prevention: a holder of the
    prefix whose queue is ahead of the least loaded worker's by more than its bonus is worth (bonus
    over queue weight, in requests) loses the bonus altogether, so that it falls behind all workers
    that wait less, and the prefix is computed, and from then on held, elsewhere too. Equal scores
    are decided by the injected generator.
    """

    name = "weighted"

    def __init__(self, weights: ScoreWeights, rng: random.Random) -> None:
        self._weights = weights
        self._rng = rng

    def prefill_keys(self, view: PrefillView) -> tuple[float]:
        """Returns where a prefill worker stands; see `Standing`."""
        return (self._weights.queue_length * view.queue_length,)

    def decode_keys(self, view: DecodeView) -> tuple[float]:
        """Returns where a decode worker stands."""
        weights = self._weights
        return (weights.queue_length * view.queue_length + weights.decode_load * view.decode_load,)

    def choose(
        self,
        request: RouteRequest,
        prefill: Sequence[PrefillView],
        decode: Sequence[DecodeView],
    ) -> Decision:
        """See RoutingPolicy."""
        decodes, decode_scores = self._rank(request, usable(decode), lambda v: v.decode_load)
        prefills, prefill_scores = self._rank(request, usable(prefill), lambda v: 0)
        return Decision(
            decode=decodes[0],
            prefill_candidates=tuple(prefills[:MAX_PREFILL_CANDIDATES]),
            policy=self.name,
            decode_scores=decode_scores,
            prefill_scores=prefill_scores,
        )

    def _rank(
        self, request: RouteRequest, views: Sequence[View], load_of: Callable[[View], int]
    ) -> tuple[list[View], tuple[Score, ...]]:
        shortest = min((view.queue_length for view in views), default=0)
        scored = [
            (self._score(request, view, load_of(view), shortest), self._rng.random(), view)
            for view in views
        ]
        scored.sort(key=lambda entry: (-entry[0].total, entry[1]))
        return [view for _, _, view in scored], tuple(score for score, _, _ in scored)

    def _score(self, request: RouteRequest, view: View, load: int, shortest: int) -> Score:
        weights = self._weights
        bonus = self._bonus(request, view)
        lead = view.queue_length - shortest
        is_hotspot = weights.enable_hotspot_prevention and 0 < bonus < weights.queue_length * lead
        return Score(
            worker_id=view.worker_id,
            prefix=0.0 if is_hotspot else bonus,
            queue=weights.queue_length * view.queue_length,
            load=weights.decode_load * load,
            is_hotspot=is_hotspot,
        )

    def _bonus(self, request: RouteRequest, view: PrefillView | DecodeView) -> float:
        hit_ratio = min(view.cached_tokens / max(request.prompt_tokens, 1), 1.0)
        if hit_ratio < self._weights.min_cache_hit_ratio:
            return 0.0
        return self._weights.prefix_cache * hit_ratio


class RoundRobinPolicy:
    """Each worker in turn, whatever it holds or does: the baseline to compare with."""

    name = "round_robin"

    def __init__(self) -> None:
        self._turn = 0

    def choose(
        self,
        request: RouteRequest,
        prefill: Sequence[PrefillView],
        decode: Sequence[DecodeView],
    ) -> Decision:
        """See RoutingPolicy; views are expected in a stable order."""
        turn, self._turn = self._turn, self._turn + 1
        decodes, prefills = usable(decode), usable(prefill)
        start = turn % len(prefills) if prefills else 0
        rotated = [*prefills[start:], *prefills[:start]]
        return Decision(
            decode=decodes[turn % len(decodes)],
            prefill_candidates=tuple(rotated[:MAX_PREFILL_CANDIDATES]),
            policy=self.name,
        )


def usable(views: Sequence[View]) -> Sequence[View]:
    """Returns the healthy workers; without any the doubtful ones, and draining ones at the last."""
    healthy = [
        view
        for view in views
        if not (view.is_draining or view.is_suspect or view.stats_age_s > STALE_AFTER_S)
    ]
    return healthy or [view for view in views if not view.is_draining] or views
