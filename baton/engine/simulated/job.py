"""One request in a simulated engine, and the way its tokens go to whoever reads them."""

import asyncio
import enum
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from baton.engine.base import TokenEvent
from baton.engine.simulated.tokens import TokenSource
from baton.errors import BatonError
from baton.kv.transfer import OutgoingTransfer
from baton.latency import prefill_features
from baton.requests import EngineRequest, FinishReason


class Phase(enum.Enum):
    """Where a job stands."""

    NEW = "new"
    WAITING = "waiting"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    ENDED = "ended"


class Order(NamedTuple):
    """Sorts jobs: higher priority first, then first come."""

    negated_priority: int
    arrival: int


class Inbox:
    """The events of one job, for one reader; at most one per token, so bounded by the request."""

    def __init__(self) -> None:
        self._events: deque[TokenEvent] = deque()
        self._error: BatonError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, event: TokenEvent) -> None:
        """Adds an event."""
        self._events.append(event)
        self._wake()

    def fail(self, error: BatonError) -> None:
        """Ends the reader with an error, behind the events that are there."""
        self._error = error
        self._wake()

    async def get(self) -> TokenEvent:
        """Returns all that is there as one event: those tokens became ready together."""
        while not self._events:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        first = self._events.popleft()
        if not self._events:
            return first
        events = [first, *self._events]
        self._events.clear()
        return TokenEvent(
            tuple(token for event in events for token in event.token_ids),
            tuple(logprob for event in events for logprob in event.logprobs),
            events[-1].finish_reason,
            first.prefilled,
        )

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Feed:
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
    """A request in the engine.

    `tokens` are the prompt and everything generated; `computed` of them have their KV in
    `blocks`. A preempted job starts over with more tokens. `answered` tokens were generated, here
    or before, and `left` may follow. `has_begun` is set once a chunk of it was charged
    for, and `prefill_s` is what all of them took.
    """

    request: EngineRequest
    owner: str
    order: Order
    source: TokenSource
    answered: int
    left: int
    stop_ids: frozenset[int]
    submitted_s: float
    tokens: list[int]
    inbox: Inbox = field(default_factory=Inbox)
    feed: Feed | None = None
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    cached_tokens: int = 0
    expected_cached: int = 0
    holds_lease: bool = False
    has_begun: bool = False
    prefill_s: float = 0.0
    is_prefilled: bool = False
    first_scheduled_s: float | None = None
    phase: Phase = Phase.NEW

    @property
    def remaining(self) -> int:
        """Tokens whose KV must be computed before the next one can be chosen."""
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

    def next_token(self) -> int:
        """Appends the next token of the answer and returns it."""
        token = self.source.token(self.answered)
        self.tokens.append(token)
        self.answered += 1
        self.left -= 1
        return token

    def finish_after(self, token: int) -> FinishReason | None:
        """Returns why the answer ends with `token`, if it does. Stop texts are the router's."""
        if token in self.stop_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if self.left <= 0 else None
