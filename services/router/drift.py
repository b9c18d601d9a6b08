"""Whether the prefix index still tells the truth: cached tokens expected against those found.

The index is a hint, so being wrong costs time and nothing else; but an index that stays wrong for
a worker, such as one whose cache events do not arrive, should not be wrong in silence.
"""

import logging
from collections import OrderedDict
from dataclasses import dataclass

from services.router.generation import Generation

logger = logging.getLogger(__name__)

ALARM_ABOVE = 0.2
"""Mean share of the prompt by which the index may be off for one worker."""

CALM_BELOW = 0.1
MIN_REQUESTS = 20
MAX_WORKERS = 1024

_MEMORY = 0.9


@dataclass(slots=True)
class _Worker:
    requests: int = 0
    mean: float = 0.0
    is_alarmed: bool = False


class IndexDrift:
    """Follows, per worker that computes prompts, the mean of (expected - found) / prompt."""

    def __init__(self) -> None:
        self._workers: OrderedDict[str, _Worker] = OrderedDict()

    @property
    def worst(self) -> float:
        """The largest mean of any worker, either way, as a share of the prompt."""
        return max((abs(it.mean) for it in self._workers.values()), default=0.0)

    @property
    def alarmed(self) -> list[str]:
        """Worker ids for which the index is off now."""
        return [name for name, it in self._workers.items() if it.is_alarmed]

    def observe(
        self, worker_id: str, expected_tokens: int, found_tokens: int, prompt_tokens: int
    ) -> None:
        """Takes in one prompt; logs when a worker's mean gets too large, and when it is well."""
        worker = self._workers.pop(worker_id, None) or _Worker()
        self._workers[worker_id] = worker
        if len(self._workers) > MAX_WORKERS:
            self._workers.popitem(last=False)
        drift = (expected_tokens - found_tokens) / max(prompt_tokens, 1)
        worker.requests += 1
        memory = min(_MEMORY, 1 - 1 / worker.requests)
        worker.mean = memory * worker.mean + (1 - memory) * drift
        self._judge(worker_id, worker)

    def _judge(self, worker_id: str, worker: _Worker) -> None:
        if worker.is_alarmed and abs(worker.mean) < CALM_BELOW:
            worker.is_alarmed = False
            logger.info("prefix index is right again worker=%s", worker_id)
        is_off = worker.requests >= MIN_REQUESTS and abs(worker.mean) > ALARM_ABOVE
        if is_off and not worker.is_alarmed:
            worker.is_alarmed = True
            logger.warning(
                "prefix index drifts worker=%s mean_share=%+.2f: %s",
                worker_id,
                worker.mean,
                "it announces more than it keeps"
                if worker.mean > 0
                else "it holds what it did not announce; do its cache events arrive?",
            )


def observe_generation(
    drift: IndexDrift, generation: Generation, computed_by: str, found_tokens: int
) -> None:
    """Takes in a generation whose prompt the worker `computed_by` computed.

    Says nothing about a worker that the router did not expect to compute, or after a failure.
    """
    expected = expected_tokens(generation, computed_by)
    if expected is not None and not generation.failed:
        drift.observe(computed_by, expected, found_tokens, len(generation.input_ids))


def expected_tokens(generation: Generation, computed_by: str) -> int | None:
    """Returns the cached tokens that the router expected where the prompt was computed.

    None when it did not expect that worker to compute it.
    """
    decision = generation.decision
    if decision is None:
        return None
    expected = decision.decode.cached_tokens
    if computed_by != decision.decode.worker_id:
        first = decision.prefill_candidates[:1]
        if not first or first[0].worker_id != computed_by:
            return None
        expected = max(expected, first[0].cached_tokens)
    return expected
