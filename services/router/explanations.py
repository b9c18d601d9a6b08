"""Why requests went where they went, and what came of it: the latest ones, in memory."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from baton.v1 import router_pb2
from services.router.answer import Answer, Figures
from services.router.generation import Generation
from services.router.policy import Decision

MAX_EXPLAINED = 2048
"""Requests that can be explained; older ones are forgotten."""

_MAX_SCORES = 8


@dataclass(frozen=True, slots=True)
class Placed:
    """One decision; `at_s` is in seconds since 1970."""

    decision: Decision
    at_s: float
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a request. Times in seconds; None where there is nothing to say.

    `ttft_s` is from the placement to the first token at the router, as predictions are.
    `prediction_error` is |predicted - actual| / actual of it. `local_ttft_s` and `remote_ttft_s`
    are what the decode worker predicted for the two ways of prefill.
    """

    error_type: str = ""
    placement: router_pb2.Placement | None = None
    cached_tokens: int = 0
    ttft_s: float | None = None
    tpot_s: float | None = None
    prediction_error: float | None = None
    local_ttft_s: float | None = None
    remote_ttft_s: float | None = None


@dataclass(slots=True)
class Explanation:
    """A request's placements in order, and its end once it came."""

    placements: list[Placed] = field(default_factory=list)
    outcome: Outcome | None = None


class Explanations:
    """Keeps a bounded number of explanations; of requests with one name the latest."""

    def __init__(
        self, limit: int = MAX_EXPLAINED, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._limit = limit
        self._wall_clock = wall_clock
        self._kept: OrderedDict[str, Explanation] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, request_id: str) -> Explanation | None:
        """Returns what is known of a request."""
        return self._kept.get(request_id)

    def placed(self, request_id: str, decision: Decision, prompt_tokens: int) -> Placed:
        """Notes a decision."""
        known = self._kept.get(request_id)
        if known is None or known.outcome is not None:
            known = Explanation()
            self._kept[request_id] = known
            self._kept.move_to_end(request_id)
        placed = Placed(_slim(decision), self._wall_clock(), prompt_tokens)
        known.placements.append(placed)
        while len(self._kept) > self._limit:
            self._kept.popitem(last=False)
        return placed

    def ended(self, request_id: str, outcome: Outcome) -> None:
        """Notes the end of a request that was placed."""
        known = self._kept.get(request_id)
        if known is not None:
            known.outcome = outcome


def outcome_of(
    generation: Generation, answer: Answer | None, figures: Figures | None, error_type: str
) -> Outcome:
    """Returns what came of a request that was placed."""
    prefilled = answer.prefilled if answer is not None else None
    ttft_s = actual_ttft_s(generation)
    has_local = prefilled is not None and prefilled.HasField("predicted_local_ttft_s")
    return Outcome(
        error_type=error_type,
        placement=answer.placement() if answer is not None and prefilled is not None else None,
        cached_tokens=answer.cached_tokens if answer is not None else 0,
        ttft_s=ttft_s,
        tpot_s=figures.tpot_s if figures is not None else None,
        prediction_error=prediction_error(generation, ttft_s),
        local_ttft_s=prefilled.predicted_local_ttft_s if prefilled and has_local else None,
        remote_ttft_s=prefilled.predicted_remote_ttft_s if prefilled and has_local else None,
    )


def actual_ttft_s(generation: Generation) -> float | None:
    """Returns the seconds from the placement to the first token."""
    if generation.placed_s is None or generation.first_token_s is None:
        return None
    return generation.first_token_s - generation.placed_s


def prediction_error(generation: Generation, ttft_s: float | None) -> float | None:
    """Returns |predicted - actual| / actual; None after a failure, which nobody predicts."""
    decision = generation.decision
    if decision is None or decision.chosen is None or generation.failed or not ttft_s:
        return None
    return abs(decision.chosen.terms.ttft_s - ttft_s) / ttft_s


def _slim(decision: Decision) -> Decision:
    """Drops what nobody reads: a large fleet has a score for each worker."""
    if not decision.decode_scores and not decision.prefill_scores:
        return decision
    return replace(
        decision,
        decode_scores=decision.decode_scores[:_MAX_SCORES],
        prefill_scores=decision.prefill_scores[:_MAX_SCORES],
    )
