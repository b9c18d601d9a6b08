"""Prompts by number: cheap to make, never twice the same, with a stated shared part.

A prompt is `shared_tokens` tokens that all prompts of its group begin with, and a tail of its own.
"""

import random
from array import array
from dataclasses import dataclass
from functools import cached_property

from baton.v1 import router_pb2, types_pb2

VOCAB = 4096
"""Of the default model. Token 0 ends its answers, so prompts have none."""

_INPUT_IDS_TAG = bytes([5 << 3 | 2])
_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class PromptPlan:
    """What all prompts of a run have in common."""

    tokens: int
    output_tokens: int
    shared_tokens: int = 0
    groups: int = 1
    seed: int = 0

    def ids(self, number: int) -> "array[int]":
        """Returns the token ids of prompt `number`."""
        shared, tail = self._shared[number % self.groups], array("I", self._tail)
        # The number in base VOCAB - 1, where the tail begins: no two prompts share more.
        for place in range(min(3, len(tail))):
            number, digit = divmod(number, VOCAB - 1)
            tail[place] = digit + 1
        return shared + tail

    def request(self, number: int) -> bytes:
        """Returns a serialised GenerateRequest for prompt `number`, put together from bytes."""
        data = self.ids(number).tobytes()
        # Packed fixed32 is little-endian u32, as in the array; fields may come in any order.
        return b"".join((_INPUT_IDS_TAG, _varint(len(data)), data, self._rest))

    def text(self, number: int) -> str:
        """Returns a prompt of about as many tokens as text, of four characters each."""
        return self._text_shared[number % self.groups] + f"{number:08d} " + self._text_tail

    @cached_property
    def _shared(self) -> "list[array[int]]":
        rng = random.Random(self.seed)  # noqa: S311 - not for secrets
        return [_random_ids(rng, self.shared_tokens) for _ in range(self.groups)]

    @cached_property
    def _tail(self) -> "array[int]":
        rng = random.Random(self.seed + 1)  # noqa: S311 - not for secrets
        return _random_ids(rng, self.tokens - self.shared_tokens)

    @cached_property
    def _rest(self) -> bytes:
        sampling = types_pb2.SamplingParams(
            max_tokens=self.output_tokens, temperature=0.0, ignore_eos=True
        )
        return router_pb2.GenerateRequest(sampling_params=sampling).SerializeToString()

    @cached_property
    def _text_shared(self) -> list[str]:
        return [_as_text(ids) for ids in self._shared]

    @cached_property
    def _text_tail(self) -> str:
        return _as_text(self._tail[: max(0, len(self._tail) - 2)])


def _random_ids(rng: random.Random, count: int) -> "array[int]":
    return array("I", (rng.randrange(1, VOCAB) for _ in range(count)))


def _as_text(ids: "array[int]") -> str:
    return "".join(f"{token % 1000:03d} " for token in ids)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
