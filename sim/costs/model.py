"""The cost of a worker's steps, in seconds: the forms of `baton.latency`, frozen for a run."""

from dataclasses import dataclass
from functools import lru_cache

from baton.latency import OnlineFit, WorkerCosts
from sim.costs.fit import Coefficients, fit

_PROMPTS = tuple(256 << power for power in range(9))

_SMALLEST = 1e-15
"""Stands in for a zero coefficient: `OnlineFit` scales by its defaults."""


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Seconds of prefill and decode steps.

    `prefill` weighs (1, tokens, token pairs) of each step, `decode` (1, sequences, resident tokens)
    up to `large_above` sequences and `large_decode` beyond. A step that does both reads the weights
    once: it costs the larger of the two constants plus all that depends on its tokens.
    """

    prefill: Coefficients
    decode: Coefficients
    large_decode: Coefficients | None = None
    large_above: int = 0

    def decode_coefficients(self, sequences: int) -> Coefficients:
        """Returns the coefficients for a batch of this size."""
        if self.large_decode is not None and sequences > self.large_above:
            return self.large_decode
        return self.decode

    def decode_s(self, sequences: int, resident_tokens: float, steps: int = 1) -> float:
        """Returns the seconds of consecutive decode steps, each adding a token per sequence."""
        base, per_sequence, per_token = self.decode_coefficients(sequences)
        first_s = base + per_sequence * sequences + per_token * resident_tokens
        return steps * first_s + per_token * sequences * steps * (steps - 1) / 2

    def tokens_s(self, tokens: int, context: int) -> float:
        """Returns what `tokens` prompt tokens after `context` ones add to a step."""
        _, per_token, per_pair = self.prefill
        return per_token * tokens + per_pair * tokens * (context + tokens / 2)

    def prefill_s(self, tokens: int, context: int, budget: int) -> float:
        """Returns the seconds to compute a prompt alone, in chunks of at most `budget` tokens."""
        return -(-tokens // budget) * self.prefill[0] + self.tokens_s(tokens, context)

    def fitted_to_prompts(self, budget: int) -> Coefficients:
        """Returns what a worker's fit finds that sees whole prompts, not the chunks of each."""
        return _fitted(self, budget)

    def mixed_base_s(self, sequences: int, resident_tokens: float) -> float:
        """Returns the seconds of a step with prefill before its prompt tokens are counted."""
        if not sequences:
            return self.prefill[0]
        base, per_sequence, per_token = self.decode_coefficients(sequences)
        return max(base, self.prefill[0]) + per_sequence * sequences + per_token * resident_tokens

    def worker_costs(self) -> WorkerCosts:
        """Returns these costs as the model that the mesh predicts with."""
        return WorkerCosts(OnlineFit(_positive(self.prefill)), OnlineFit(_positive(self.decode)))

    @classmethod
    def of(cls, costs: WorkerCosts) -> "StepCosts":
        """Returns what a fitted model of the mesh says now."""
        first, second, third = costs.prefill.coefficients
        base, per_sequence, per_token = costs.step.coefficients
        return cls((first, second, third), (base, per_sequence, per_token))


@lru_cache(maxsize=64)
def _fitted(costs: StepCosts, budget: int) -> Coefficients:
    samples = [
        ((1.0, float(tokens), tokens * tokens / 2), costs.prefill_s(tokens, 0, budget))
        for tokens in _PROMPTS
    ]
    return fit(samples)[0]


def _positive(values: Coefficients) -> Coefficients:
    first, second, third = (max(value, _SMALLEST) for value in values)
    return first, second, third
