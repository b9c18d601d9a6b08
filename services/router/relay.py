"""From a decode worker's frames to as few steps of a request's task as its client needs.

The first token wakes the task at once, and so does the end. Tokens between them are gathered and
wake it at the next beat, which all requests share: so many clients' tokens travel in one message,
and a client gets a message every HOLD_S instead of one for each token.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from baton.errors import BatonError
from baton.rpc.link import LinkCall
from baton.v1 import decode_link_pb2

HOLD_S = 0.02
"""How long a token after the first may be held back to travel with the next ones. Seconds."""

_WOKEN_AT_ONCE = 64
"""Between so many requests of one beat the event loop looks at what else came meanwhile."""


@dataclass(slots=True)
class Progress:
    """What came since the last time, in order: the prompt's end, tokens, the generation's end.

    `finish_reason` is the proto's number, 0 while there is none.
    """

    prefilled: decode_link_pb2.DecodePrefilled | None = None
    stages: decode_link_pb2.DecodeStages | None = None
    output_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: int = 0


class Beat:
    """Wakes whoever joined since the last beat, `every_s` after the first of them."""

    def __init__(self, every_s: float = HOLD_S) -> None:
        self._every_s = every_s
        self._joined: list[Callable[[], None]] = []

    def join(self, wake: Callable[[], None]) -> None:
        """Calls `wake` once, within the beat's time."""
        if not self._joined:
            asyncio.get_running_loop().call_later(self._every_s, self._strike)
        self._joined.append(wake)

    def _strike(self) -> None:
        joined, self._joined = self._joined, []
        self._wake(joined)

    def _wake(self, joined: list[Callable[[], None]]) -> None:
        for wake in joined[:_WOKEN_AT_ONCE]:
            wake()
        if rest := joined[_WOKEN_AT_ONCE:]:
            asyncio.get_running_loop().call_soon(self._wake, rest)


class Relay:
    """Receives one request's events on a link to a decode worker; see baton.rpc.link.Receiver.

    One task may wait in `next`. The worker is granted room for more events only when that task
    comes back, so that a client that stalls stops its own worker's sending and nothing else.
    """

    def __init__(self, beat: Beat, *, has_started: bool) -> None:
        self._beat = beat
        self._has_started = has_started
        self._progress = Progress()
        self._events = 0
        self._is_due = False
        self._joined_beat = False
        self._has_finished = False
        self._has_ended = False
        self._error: BatonError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def deliver(self, event: Any, kind: str) -> None:
        """Takes an event of the link; what comes behind the finish is not part of the answer."""
        self._events += 1
        if self._has_finished:
            return
        if kind == "tokens":
            self._take_tokens(event.tokens)
        elif kind == "finished":
            self._has_finished = True
            self._progress.finish_reason = event.finished.finish_reason
            self._wake()
        elif kind == "prefilled":
            self._progress.prefilled = event.prefilled
            self._wake_at_beat()
        elif kind == "stages":
            self._progress.stages = event.stages
            self._wake_at_beat()

    def end(self, error: BatonError | None) -> None:
        """Takes the end of the request on the link."""
        self._has_ended, self._error = True, error
        self._wake()

    async def next(self, call: LinkCall[Any, Any]) -> Progress | None:
        """Returns what came, waiting for the moment to pass it on; None after a good end.

        Raises the error with which the request ended, once everything before it was returned.
        """
        while not (self._is_due and (self._events or self._has_ended)):
            # A beat may find that an earlier wake has taken everything already.
            self._is_due = False
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        self._is_due = self._has_ended
        if self._events:
            call.consumed(self._events)
            self._events = 0
            progress, self._progress = self._progress, Progress()
            return progress
        if self._error is not None:
            raise self._error
        return None

    def _take_tokens(self, tokens: decode_link_pb2.DecodeTokens) -> None:
        progress = self._progress
        progress.output_ids.extend(tokens.output_ids)
        if tokens.logprobs:
            progress.logprobs.extend(tokens.logprobs)
        if self._has_started:
            self._wake_at_beat()
        else:
            self._has_started = True
            self._wake()

    def _wake_at_beat(self) -> None:
        if not self._joined_beat:
            self._joined_beat = True
            self._beat.join(self._strike)

    def _strike(self) -> None:
        self._joined_beat = False
        self._wake()

    def _wake(self) -> None:
        self._is_due = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
