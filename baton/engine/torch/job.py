"""One request as the engine computes it."""

import enum
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tokenizers import Tokenizer

from baton.engine.base import TokenEvent
from baton.errors import BatonError
from baton.kv.transfer import OutgoingTransfer
from baton.latency import prefill_features
from baton.requests import EngineRequest, FinishReason
from baton.text import TextStream


class Phase(enum.Enum):
    """Where a job stands in the scheduler."""

    WAITING = "waiting"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    ENDED = "ended"


class Order(NamedTuple):
    """Sorts jobs: higher priority first, then first come."""

    negated_priority: int
    arrival: int


class JobEnd(NamedTuple):
    """The engine thread will not touch the job or its blocks any more."""

    error: BatonError | None = None


class StopRule:
    """Tells after each generated token whether the generation is over.

    `text` looks for stop strings; it knows what an earlier worker generated already.
    """

    def __init__(
        self, stop_ids: frozenset[int], max_tokens: int, text: TextStream | None = None
    ) -> None:
        self._stop_ids = stop_ids
        self._tokens_left = max_tokens
        self._text = text

    def finish_after(self, token: int) -> FinishReason | None:
        """Counts one more token; returns the reason if it was the last one."""
        self._tokens_left -= 1
        if self._text is not None:
            self._text.push((token,))
        if token in self._stop_ids or (self._text is not None and self._text.stopped):
            return FinishReason.STOP
        return FinishReason.LENGTH if self._tokens_left <= 0 else None


def stop_rule(
    request: EngineRequest, eos_ids: frozenset[int], max_tokens: int, tokenizer: Tokenizer
) -> StopRule:
    """Returns the rule of a request of which at most `max_tokens` more tokens have room."""
    sampling = request.sampling
    stop_ids = frozenset(sampling.stop_token_ids)
    if not sampling.ignore_eos:
        stop_ids |= eos_ids
    text = None
    if sampling.stop:
        text = TextStream(tokenizer, sampling.stop)
        text.push(request.input_ids[len(request.input_ids) - request.resumed_tokens :])
    return StopRule(stop_ids, min(max_tokens, sampling.max_tokens), text)


class BlockFeed:
    """Pushes a prompt's blocks to its destination, each once, as soon as it is computed."""

    def __init__(self, outgoing: OutgoingTransfer, skipped_blocks: int) -> None:
        self._outgoing = outgoing
        self._skipped = skipped_blocks
        self._pushed = skipped_blocks

    def push_until(self, blocks: Sequence[int], end: int) -> None:
        """Pushes all blocks before index `end` that were not pushed yet."""
        if end > self._pushed:
            self._outgoing.push(blocks[self._pushed : end], self._pushed - self._skipped)
            self._pushed = end


@dataclass(slots=True, eq=False)
class Job:
    """A request in the engine; after submission only the engine thread changes it.

    `tokens` are the prompt and everything generated; `computed` of them have their KV in
    `blocks`. Every step computes some more, and whenever none is left a token is sampled, so a
    preempted job simply starts over with more tokens. `on_event` is called on the event loop.
    `expected_cached` tokens were in the prefix cache when the job was submitted.
    """

    request: EngineRequest
    owner: str
    order: Order
    seed: int
    stop_rule: StopRule
    submitted_s: float
    on_event: Callable[[TokenEvent | JobEnd], None]
    tokens: list[int]
    feed: BlockFeed | None = None
    blocks: "array[int]" = field(default_factory=lambda: array("q"))
    computed: int = 0
    cached_tokens: int = 0
    expected_cached: int = 0
    holds_lease: bool = False
    is_prefilled: bool = False
    first_scheduled_s: float | None = None
    phase: Phase = Phase.WAITING

    @property
    def remaining(self) -> int:
        """Tokens whose KV must be computed before the next one can be sampled."""
        return len(self.tokens) - self.computed

    @property
    def queued_tokens(self) -> int:
        """Tokens of the prompt that probably have to be computed still."""
        if self.phase is Phase.PREFILLING:
            return self.remaining
        if self.phase is Phase.WAITING:
            return max(0, len(self.tokens) - max(self.computed, self.expected_cached))
        return 0

    @property
    def queued_pairs(self) -> float:
        """Token pairs that attention reads for those."""
        tokens = self.queued_tokens
        return prefill_features(tokens, len(self.tokens) - tokens)[2]

    @property
    def is_only_prefill(self) -> bool:
        """Whether the job ends with its first token and its blocks are read by a transfer."""
        return self.feed is not None
