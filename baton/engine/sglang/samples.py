"""What an engine's outputs say about its speed, for the cost model."""

from collections import deque
from collections.abc import Mapping
from typing import Any

from baton.engine.base import EngineSamples, PrefillSample, StepSample
from baton.engine.sglang.options import DECODE, PREFILL

MAX_SAMPLES = 256
STEP_SAMPLE_TOKENS = 4
"""Shorter answers say too little about a step."""


class Samples:
    """The newest measurements since they were last taken."""

    def __init__(self, role: str) -> None:
        self._role = role
        self._prefills: deque[PrefillSample] = deque(maxlen=MAX_SAMPLES)
        self._steps: deque[StepSample] = deque(maxlen=MAX_SAMPLES)

    def learn_prefill(self, prompt_tokens: int, cached_tokens: int, compute_s: float) -> None:
        """Takes in how long a prompt was computed here; a decode engine computes none."""
        if self._role != DECODE and compute_s > 0:
            uncached = max(1, prompt_tokens - cached_tokens)
            self._prefills.append(PrefillSample(uncached, cached_tokens, compute_s))

    def learn_steps(self, tokens: int, seconds: float, snapshot: Mapping[str, Any]) -> None:
        """Takes in how long a stream took after its first token, beside what ran at its end."""
        if self._role == PREFILL or tokens < STEP_SAMPLE_TOKENS:
            return
        sequences = max(1, int(snapshot.get("num_running_reqs", 1)))
        resident = int(snapshot.get("num_used_tokens", 0))
        self._steps.append(StepSample(sequences, resident, seconds / (tokens - 1)))

    def take(self) -> EngineSamples:
        """Returns what was measured and begins anew."""
        samples = EngineSamples(tuple(self._prefills), tuple(self._steps))
        self._prefills.clear()
        self._steps.clear()
        return samples
