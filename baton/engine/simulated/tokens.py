"""The tokens that simulated engines generate: a function of the prompt and the position alone.

Any engine continues any other's answer, so a migrated or disaggregated generation can be checked
token by token against `answer`. Sampling parameters do not matter, and no token ends a sequence.
"""

from collections.abc import Sequence

import xxhash

from baton.blocks import token_bytes

_ODD = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


class TokenSource:
    """Yields the token at each position behind one prompt. `eos_ids` are never among them."""

    def __init__(self, prompt: Sequence[int], vocab_size: int, eos_ids: frozenset[int]) -> None:
        self._seed = xxhash.xxh3_64_intdigest(token_bytes(prompt))
        self._vocab_size = vocab_size
        self._eos_ids = eos_ids

    def token(self, position: int) -> int:
        """Returns the token number `position` of the answer, counted from 0."""
        # One multiplication mixes the position in; the high bits are the well-mixed ones.
        mixed = ((self._seed ^ position) * _ODD) & _MASK
        token = (mixed >> 32) % self._vocab_size
        while token in self._eos_ids:
            token = (token + 1) % self._vocab_size
        return token


def answer(
    prompt: Sequence[int], count: int, vocab_size: int, eos_ids: frozenset[int] = frozenset()
) -> list[int]:
    """Returns the first `count` tokens that any simulated engine answers to `prompt`."""
    source = TokenSource(prompt, vocab_size, eos_ids)
    return [source.token(position) for position in range(count)]
