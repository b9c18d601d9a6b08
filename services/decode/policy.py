"""Local or remote prefill: decided on the decode worker, once per request. Pure.

The chapter's rule: a prompt goes remote when what its cache lacks is long, and a prefill worker
has room. The router's order of the prefill workers is kept; those with a full queue are skipped.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class SplitReason(enum.StrEnum):
    """Why a prompt is computed where it is."""

    LONG_PREFILL = "LONG_PREFILL"
    SHORT_PREFILL = "SHORT_PREFILL"
    PREFILL_QUEUE_FULL = "PREFILL_QUEUE_FULL"
    NO_PREFILL_WORKER = "NO_PREFILL_WORKER"


@dataclass(frozen=True, slots=True)
class SplitDecision:
    """Where to compute a prompt, with the numbers it was decided on.

    `candidates` are the indices of the prefill workers to try, best first; empty when local.
    `shortest_queue` is None without prefill workers.
    """

    remote: bool
    reason: SplitReason
    candidates: tuple[int, ...]
    uncached_tokens: int
    threshold_tokens: int
    shortest_queue: int | None
    queue_max: int


class SplitPolicy(Protocol):
    """Decides local or remote prefill."""

    def decide(
        self, prompt_tokens: int, cached_tokens: int, queue_lengths: Sequence[int]
    ) -> SplitDecision:
        """Decides for a prompt of which this worker's own cache holds `cached_tokens`.

        `queue_lengths` has the waiting requests of each prefill worker, best worker first.
        """
        ...


def should_offload_prefill(
    prompt_length: int,
    prefix_cached_length: int,
    prefill_queue_size: int,
    *,
    prefill_length_threshold: int,
    prefill_queue_max: int,
) -> bool:
    """Returns whether the uncached part is long and the prefill worker's queue is short."""
    long_prefill = prompt_length - prefix_cached_length > prefill_length_threshold
    prefill_available = prefill_queue_size < prefill_queue_max
    return long_prefill and prefill_available


@dataclass(frozen=True, slots=True)
class ThresholdSplitPolicy:
    """The chapter's rule with its two thresholds, in tokens and in requests."""

    prompt_length_threshold: int
    prefill_queue_max: int

    def decide(
        self, prompt_tokens: int, cached_tokens: int, queue_lengths: Sequence[int]
    ) -> SplitDecision:
        """See `SplitPolicy.decide`."""
        candidates = tuple(
            index
            for index, queue_length in enumerate(queue_lengths)
            if should_offload_prefill(
                prompt_tokens,
                cached_tokens,
                queue_length,
                prefill_length_threshold=self.prompt_length_threshold,
                prefill_queue_max=self.prefill_queue_max,
            )
        )
        uncached_tokens = prompt_tokens - cached_tokens
        return SplitDecision(
            remote=bool(candidates),
            reason=self._reason(bool(candidates), uncached_tokens, bool(queue_lengths)),
            candidates=candidates,
            uncached_tokens=uncached_tokens,
            threshold_tokens=self.prompt_length_threshold,
            shortest_queue=min(queue_lengths, default=None),
            queue_max=self.prefill_queue_max,
        )

    def _reason(self, remote: bool, uncached_tokens: int, has_workers: bool) -> SplitReason:
        if remote:
            return SplitReason.LONG_PREFILL
        if uncached_tokens <= self.prompt_length_threshold:
            return SplitReason.SHORT_PREFILL
        if has_workers:
            return SplitReason.PREFILL_QUEUE_FULL
        return SplitReason.NO_PREFILL_WORKER
