"""How much a step may hold, from what steps took so far. Pure Python, no torch."""

from collections.abc import Sequence
from typing import NamedTuple

from baton.latency import OnlineFit

MOST_TOKENS = 8192
"""Of one step, however fast they are; bounds the memory that a step takes."""
FEWEST_TOKENS = 16
"""Of prompts in one step however slow they are, so that every prompt comes to its end."""

_DEFAULTS = (5e-3, 5e-4, 1e-7, 5e-4, 1e-8, 1e-3)
"""Seconds per step, decode, resident token, prompt token, pair of tokens that attention reads, and
of a step because it has any prompt; until steps were measured, they give prompts about 300 tokens
of a step of 0.2 s."""
_SHARE = 0.8
"""Of the target that steps may take: what surrounds a step also counts for the stream."""
_SHORTEST_TOKEN_S = 1e-7
_LONGEST_STEP_S = 0.25
"""Of a step without decodes: who arrives or leaves waits for its end."""
_LONGEST_SHARE = 0.1
"""Of the target for TTFT that such a step may take, where that is longer: long steps read the
weights less often, and who expects seconds can wait for one."""


class StepLoad(NamedTuple):
    """What a step computes: decodes that hold `resident_tokens`, and `prompt_tokens` of prompts.

    `token_pairs` counts which of their tokens attend to which.
    """

    decodes: int
    resident_tokens: int
    prompt_tokens: int = 0
    token_pairs: float = 0.0


class StepSizer:
    """Fits what steps cost and fills them up to a target. Used by the engine thread alone.

    Who has waited for `patience_s`, the target for TTFT, starts whatever that does to the other.
    """

    def __init__(self, tpot_target_s: float, patience_s: float) -> None:
        self._target_s = _SHARE * tpot_target_s
        self._patience_s = patience_s
        self._longest_s = max(self._target_s, _LONGEST_STEP_S, _LONGEST_SHARE * patience_s)
        self._fit = OnlineFit(_DEFAULTS)

    def learn(self, load: StepLoad, seconds: float) -> None:
        """Takes in what a step took."""
        self._fit.update((1.0, *load, float(load.prompt_tokens > 0)), seconds)

    def prompt_tokens(self, decodes: int, resident_tokens: int, context: int) -> int:
        """Returns how many tokens of a prompt, `context` computed already, fit beside decodes.

        With decodes the step stays within their target, without within what arrivals may wait.
        Where no prompt fits, as on a GPU that replays recorded steps only as long as they have no
        prompt in them, its share is as long as what having one costs by itself: at most twice the
        delay, for a small part of the number of steps.
        """
        *_, token_s, pair_s, any_s = self._fit.coefficients
        target_s = self._target_s if decodes else self._longest_s
        each_s = max(token_s + pair_s * context, _SHORTEST_TOKEN_S)
        room_s = target_s - any_s - self._decodes_s(decodes, resident_tokens)
        if room_s <= FEWEST_TOKENS * each_s:
            room_s = any_s
        return max(FEWEST_TOKENS, min(MOST_TOKENS, int(room_s / each_s)))

    def has_room(self, decodes: int, resident_tokens: int, waited_s: float) -> bool:
        """Tells whether a job that has waited may start and make a step of these decodes.

        It may while the step stays within the target, as far as is known. A stream of short steps
        may last for ever, so a wait must not.
        """
        if waited_s >= self._patience_s or self._fit.samples < len(_DEFAULTS):
            return True
        return self._decodes_s(decodes, resident_tokens) <= self._target_s

    def _decodes_s(self, decodes: int, resident_tokens: int) -> float:
        return self._fit.predict((1.0, decodes, resident_tokens, 0.0, 0.0, 0.0))


def chunk_pairs(spans: Sequence[tuple[int, int]]) -> float:
    """Returns the token pairs of chunks (start, count): each token attends to all before it."""
    return sum(count * (start + count / 2) for start, count in spans)
