"""Local or remote prefill: decided on the decode worker, once per request. Pure.

The chapter's rule (`ThresholdSplitPolicy`): a prompt goes remote when what its cache lacks is long
and a prefill worker has room. The router's order of the prefill workers is kept; those with a full
queue are skipped.

The rule that minds the targets (`PredictiveSplitPolicy`): a prompt goes remote when

    wait(p) + prefill(p) + transfer(p)  <  wait(here) + prefill(here) + what that does to the
                                           streams running here

with all times predicted from measurements. While no prefill worker has enough of them it is the
chapter's rule. A decode worker that has not yet computed enough prompts itself takes them to last
as long as at the prefill worker: by the chapter's rule it would send them away and never find out.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from baton.latency import CostModel, interference_s, local_prefill_s


class SplitReason(enum.StrEnum):
    """Why a prompt is computed where it is."""

    LONG_PREFILL = "LONG_PREFILL"
    SHORT_PREFILL = "SHORT_PREFILL"
    PREFILL_QUEUE_FULL = "PREFILL_QUEUE_FULL"
    NO_PREFILL_WORKER = "NO_PREFILL_WORKER"
    REMOTE_FASTER = "REMOTE_FASTER"
    LOCAL_FASTER = "LOCAL_FASTER"
    DEGRADED_TO_LOCAL = "DEGRADED_TO_LOCAL"
    ONLY_LOCAL = "ONLY_LOCAL"
    """The engine here takes no KV from others."""
    ONLY_REMOTE = "ONLY_REMOTE"
    """The engine here computes no prompts."""


@dataclass(frozen=True, slots=True)
class LocalOutlook:
    """How the decode worker stands: prompts ahead of this one and streams that run now.

    `costs` are its own, fitted; they include the transfers from each prefill worker.
    """

    costs: CostModel
    queue_length: int = 0
    queued_tokens: int = 0
    queued_pairs: float | None = None
    sequences: int = 0
    resident_tokens: int = 0
    kv_bytes_per_token: int = 0


@dataclass(frozen=True, slots=True)
class RemoteOutlook:
    """What the router expects of a prefill worker, in seconds, which holds `cached_tokens`."""

    worker_id: str
    wait_s: float
    prefill_s: float
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a predicted decision needs; `remotes` are parallel to the queue lengths.

    None stands for a prefill worker that was not measured yet.
    """

    local: LocalOutlook
    remotes: Sequence[RemoteOutlook | None]


@dataclass(frozen=True, slots=True)
class SplitPrediction:
    """Both ways in seconds, the one not taken included; `interference_s` comes on top of local."""

    local_ttft_s: float
    remote_ttft_s: float
    interference_s: float


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
    prediction: SplitPrediction | None = None


class SplitPolicy(Protocol):
    """Decides local or remote prefill."""

    def decide(
        self,
        prompt_tokens: int,
        cached_tokens: int,
        queue_lengths: Sequence[int],
        outlook: Outlook | None = None,
    ) -> SplitDecision:
        """Decides for a prompt of which this worker's own cache holds `cached_tokens`.

        `queue_lengths` has the waiting requests of each prefill worker, best worker first.
        Without an `outlook` nothing is predicted.
        """
        ...


def fit_to_engine(
    decision: SplitDecision, workers: int, *, prefills_locally: bool, takes_prefilled: bool
) -> SplitDecision:
    """Returns the decision as an engine that can do only one of both has to carry it out.

    The numbers stay those of the decision, so that it can be told what the other way would have
    taken. An engine without local prefill tries all `workers`, those that were chosen first.
    """
    if decision.remote and not takes_prefilled:
        return replace(decision, remote=False, reason=SplitReason.ONLY_LOCAL, candidates=())
    if prefills_locally:
        return decision
    others = (index for index in range(workers) if index not in decision.candidates)
    reason = decision.reason if decision.remote else SplitReason.ONLY_REMOTE
    candidates = (*decision.candidates, *others)
    return replace(decision, remote=bool(candidates), reason=reason, candidates=candidates)


def preferring_local(decision: SplitDecision) -> SplitDecision:
    """Returns the decision for a request that has to put up with a slower first token.

    It is computed here however long that takes, but not at the price of the streams that run here,
    which were promised more: it goes where it would go if disturbing them costs more than the
    remote way takes.
    """
    prediction = decision.prediction
    if prediction is not None and prediction.interference_s > prediction.remote_ttft_s:
        return decision
    return replace(decision, remote=False, reason=SplitReason.DEGRADED_TO_LOCAL, candidates=())


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
        self,
        prompt_tokens: int,
        cached_tokens: int,
        queue_lengths: Sequence[int],
        outlook: Outlook | None = None,
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


class _Remote(NamedTuple):
    position: int
    ttft_s: float
    outlook: RemoteOutlook


@dataclass(frozen=True, slots=True)
class PredictiveSplitPolicy:
    """Compares both ways by prediction. `fallback` decides while something is not measured.

    `tpot_price` is how many seconds of TTFT one second of TPOT is worth: the ratio of the fleet's
    targets. `chunk_tokens` is the most of a prompt that one step computes.
    """

    fallback: ThresholdSplitPolicy
    tpot_price: float
    chunk_tokens: int

    def decide(
        self,
        prompt_tokens: int,
        cached_tokens: int,
        queue_lengths: Sequence[int],
        outlook: Outlook | None = None,
    ) -> SplitDecision:
        """See `SplitPolicy.decide`. Remote workers that lose against local are not tried."""
        decision = self.fallback.decide(prompt_tokens, cached_tokens, queue_lengths)
        if outlook is None:
            return decision
        missing = prompt_tokens - cached_tokens
        remotes = self._remotes(missing, queue_lengths, outlook)
        if not remotes:
            return decision
        prediction = self._predict(prompt_tokens, cached_tokens, remotes, outlook.local)
        local_s = prediction.local_ttft_s + prediction.interference_s
        faster = tuple(remote.position for remote in remotes if remote.ttft_s < local_s)
        return replace(
            decision,
            remote=bool(faster),
            reason=SplitReason.REMOTE_FASTER if faster else SplitReason.LOCAL_FASTER,
            candidates=faster,
            prediction=prediction,
        )

    def _remotes(
        self, missing: int, queue_lengths: Sequence[int], outlook: Outlook
    ) -> list[_Remote]:
        """Returns the measured workers that have room, fastest first."""
        local = outlook.local
        kv_bytes = missing * local.kv_bytes_per_token
        remotes = []
        for index, (queue, remote) in enumerate(zip(queue_lengths, outlook.remotes, strict=True)):
            if remote is not None and queue < self.fallback.prefill_queue_max:
                transfer_s = local.costs.transfer_s(remote.worker_id, kv_bytes)
                ttft_s = remote.wait_s + remote.prefill_s + transfer_s
                remotes.append(_Remote(index, ttft_s, remote))
        return sorted(remotes, key=lambda it: it.ttft_s)

    def _predict(
        self, prompt: int, cached: int, remotes: Sequence[_Remote], local: LocalOutlook
    ) -> SplitPrediction:
        costs, uncached = local.costs, max(1, prompt - cached)
        if costs.knows_prefill:
            alone_s = costs.prefill_s(uncached, cached)
            ahead_s = costs.queue_s(local.queue_length, local.queued_tokens, local.queued_pairs)
        else:
            token_s = _token_s(remotes[0].outlook, prompt)
            alone_s, ahead_s = uncached * token_s, local.queued_tokens * token_s
        step_s = costs.step_s(local.sequences, local.resident_tokens)
        here_s = local_prefill_s(alone_s, uncached, self.chunk_tokens, local.sequences, step_s)
        return SplitPrediction(
            local_ttft_s=here_s + ahead_s,
            remote_ttft_s=remotes[0].ttft_s,
            interference_s=interference_s(
                alone_s, local.sequences, self.tpot_price, costs.output_tokens
            ),
        )


def _token_s(remote: RemoteOutlook, prompt_tokens: int) -> float:
    """Returns what each of a prompt's tokens takes a prefill worker, in seconds."""
    return remote.prefill_s / max(1, prompt_tokens - remote.cached_tokens)
