"""Links: one long-lived bidirectional stream between two processes for many requests.

Setting up an RPC costs several times a message on an open stream, so inside the mesh a request is
a few frames on a link: a command that opens it, further commands, events back and one end frame.
All frames ready at the same moment travel in one message. Flow control is per request: the opener
grants a window of events and renews it as it consumes, so a slow consumer stops its own events
only. A broken link ends everything that the peer owned on it. How frames share messages is told in
baton/rpc/pace.py.

This module is the opener's side; baton/rpc/link_server.py serves. The frames are the *_link.proto
messages: a command has stream_id, context and a `command` oneof with `cancel` and `credit`; an
event has stream_id and an `event` oneof with `end`.
"""

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

import grpc

from baton.errors import BatonError, DeadlineError, UnavailableError
from baton.rpc.channels import open_channel
from baton.rpc.pace import LONGEST_S, Outbox, Pace
from baton.rpc.status import from_end
from baton.v1 import link_pb2

logger = logging.getLogger(__name__)

CommandT = TypeVar("CommandT")
EventT = TypeVar("EventT")

WINDOW_EVENTS = 128
"""Events of one request that may be on their way before the opener consumed any, by default."""

PEER_LOST = "PEER_LOST"
"""Reason of the UnavailableError with which a broken link ends its requests."""

CANCEL_TIMEOUT_S = 10.0
"""How long a cancelled request may take to confirm its end."""


@dataclass(frozen=True, slots=True)
class LinkSpec(Generic[CommandT, EventT]):
    """The message types of one link; `method` is its full gRPC path.

    `window` is how many events of one request may be on their way before any was consumed.
    """

    method: str
    request: Callable[..., Any]
    response: Callable[..., Any]
    command: Callable[..., CommandT]
    event: Callable[..., EventT]
    window: int = WINDOW_EVENTS


class Receiver(Protocol):
    """Takes a request's events as they come in, without a task of its own that waits for them."""

    def deliver(self, event: Any, kind: str) -> None:
        """Takes an event; `kind` is which of its oneof is set."""
        ...

    def end(self, error: BatonError | None) -> None:
        """Takes the end, once; nothing comes after it."""
        ...


class LinkCall(Generic[CommandT, EventT]):
    """One request on a link, from the opener's side. Use `async with`, iterate its events.

    Iteration ends when the peer ended the request well and raises its BatonError otherwise,
    UnavailableError (PEER_LOST) when the link broke, DeadlineError when its time is up. Leaving
    the context before the end cancels the request.

    With a receiver the events go there instead: the deadline is then the caller's to keep, and
    who received the events says `consumed`.
    """

    def __init__(
        self,
        link: "Link[CommandT, EventT]",
        stream_id: int,
        deadline_s: float | None,
        receiver: Receiver | None = None,
    ) -> None:
        self._link = link
        self._stream_id = stream_id
        self._deadline_s = deadline_s
        self._receiver = receiver
        self._events: deque[EventT] = deque()
        self._changed = asyncio.Event()
        self._consumed = 0
        self._ended = False
        self._error: BatonError | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.request_cancel(LONGEST_S)

    def __aiter__(self) -> AsyncIterator[EventT]:
        return self

    async def __anext__(self) -> EventT:
        while not self._events:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            self._changed.clear()
            await self._wait_changed()
        self.consumed(1)
        return self._events.popleft()

    def send(self, command: CommandT, hold_s: float = 0.0) -> None:
        """Sends a further command about this request; ignored once it ended.

        It may be held back for `hold_s` to travel with later ones, or with those of others.
        """
        if not self._ended:
            self._link.post(self._stream_id, command, hold_s)

    def request_cancel(self, hold_s: float = 0.0) -> None:
        """Asks the peer to stop; does not wait. `hold_s` as for `send`."""
        if not self._ended:
            self._link.post_cancel(self._stream_id, hold_s)

    async def cancel(self) -> None:
        """Stops the request and returns once the peer confirmed that it stopped.

        Raises UnavailableError when the link broke or the peer did not confirm in time.
        """
        self.request_cancel()
        try:
            async with asyncio.timeout(CANCEL_TIMEOUT_S):
                while not self._ended:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise UnavailableError(
                "the peer did not confirm a cancel", reason="PEER_STUCK"
            ) from None
        if isinstance(self._error, UnavailableError):
            raise self._error

    def deliver(self, event: EventT, kind: str) -> None:
        """Called by the link with each event."""
        if self._receiver is not None:
            self._receiver.deliver(event, kind)
            return
        self._events.append(event)
        self._changed.set()

    def end(self, error: BatonError | None) -> None:
        """Called by the link once, at the end."""
        self._ended = True
        self._error = error
        self._changed.set()
        if self._receiver is not None:
            self._receiver.end(error)

    def consumed(self, events: int) -> None:
        """Notes that events were dealt with; the peer may send as many more."""
        self._consumed += events
        if self._consumed >= self._link.window // 2 and not self._ended:
            self._link.post_credit(self._stream_id, self._consumed)
            self._consumed = 0

    async def _wait_changed(self) -> None:
        if self._deadline_s is None:
            await self._changed.wait()
            return
        try:
            async with asyncio.timeout(self._deadline_s - time.monotonic()):
                await self._changed.wait()
        except TimeoutError:
            self.request_cancel()
            raise DeadlineError("the request's deadline passed") from None


class Link(Generic[CommandT, EventT]):
    """The opener's end of one link. Opens on first use; a broken link is not reused."""

    def __init__(
        self, spec: LinkSpec[CommandT, EventT], address: str, pace: Pace | None = None
    ) -> None:
        self.address = address
        self.is_broken = False
        self.window = spec.window
        self.idle_since_s: float | None = time.monotonic()
        self._spec = spec
        self._ids = itertools.count(1)
        self._calls: dict[int, LinkCall[CommandT, EventT]] = {}
        self._pace = pace or Pace()
        self._outbox: Outbox[CommandT] = Outbox(self._pace)
        self._runner: asyncio.Task[None] | None = None

    def open(
        self,
        command: CommandT,
        *,
        timeout_s: float | None = None,
        traceparent: str = "",
        receiver: Receiver | None = None,
        hold_s: float = 0.0,
    ) -> LinkCall[CommandT, EventT]:
        """Opens a request with its first command, held back for `hold_s` as in `LinkCall.send`.

        `timeout_s` is what is left of its deadline.
        """
        if self._runner is None:
            self._runner = asyncio.get_running_loop().create_task(self._run())
        stream_id = next(self._ids)
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        call = LinkCall(self, stream_id, deadline_s, receiver)
        if self.is_broken:
            call.end(self._lost())
            return call
        self._calls[stream_id] = call
        self.idle_since_s = None
        # Filled in where it is: a message made apart would be copied.
        context = command.context  # type: ignore[attr-defined]  # every command has one
        context.window = self.window
        if timeout_s is not None:
            context.timeout_s = timeout_s
        if traceparent:
            context.traceparent = traceparent
        if self._pace.interval_s:
            context.interval_s = self._pace.interval_s
        self.post(stream_id, command, hold_s)
        return call

    def post(self, stream_id: int, command: CommandT, hold_s: float = 0.0) -> None:
        """Queues a command; all queued at one moment travel together."""
        command.stream_id = stream_id  # type: ignore[attr-defined]  # every command has one
        self._outbox.post(command, hold_s)

    def post_cancel(self, stream_id: int, hold_s: float = 0.0) -> None:
        """Queues a cancel."""
        self.post(stream_id, self._spec.command(cancel=link_pb2.LinkCancel()), hold_s)

    def post_credit(self, stream_id: int, events: int) -> None:
        """Queues a grant of room for events, half a window before it is needed."""
        credit = self._spec.command(credit=link_pb2.LinkCredit(events=events))
        self.post(stream_id, credit, LONGEST_S)

    async def close(self) -> None:
        """Closes the link; requests still on it fail."""
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.wait([self._runner])

    async def _run(self) -> None:
        channel = open_channel(self.address)
        try:
            stream: Any = channel.stream_stream(
                self._spec.method,
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=self._spec.response.FromString,  # type: ignore[attr-defined]
            )()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._write(stream))
                tasks.create_task(self._read(stream))
        except* (grpc.aio.AioRpcError, asyncio.InvalidStateError, _PeerClosed) as broken:
            logger.debug("link broke: address=%s cause=%s", self.address, broken.exceptions)
        finally:
            self._break()
            await channel.close()

    async def _write(self, stream: Any) -> None:
        while True:
            commands = await self._outbox.take()
            await stream.write(self._spec.request(commands=commands))

    async def _read(self, stream: Any) -> None:
        while (response := await stream.read()) is not grpc.aio.EOF:
            self._pace.note()
            for event in response.events:
                self._dispatch(event)
        raise _PeerClosed

    def _dispatch(self, event: Any) -> None:
        call = self._calls.get(event.stream_id)
        if call is None:
            return
        kind = event.WhichOneof("event")
        if kind == "end":
            self._forget(event.stream_id)
            call.end(from_end(event.end))
        else:
            call.deliver(event, kind)

    def _forget(self, stream_id: int) -> None:
        del self._calls[stream_id]
        if not self._calls:
            self.idle_since_s = time.monotonic()

    def _break(self) -> None:
        self.is_broken = True
        for call in self._calls.values():
            call.end(self._lost())
        self._calls.clear()

    def _lost(self) -> UnavailableError:
        return UnavailableError(f"the link to {self.address} broke", reason=PEER_LOST)


class _PeerClosed(Exception):  # noqa: N818  # an event, not an error
    """The peer ended the stream."""


class LinkPool(Generic[CommandT, EventT]):
    """One link per peer, opened on first use and closed when idle.

    All links of a process should share one `pace`.
    """

    def __init__(
        self,
        spec: LinkSpec[CommandT, EventT],
        idle_close_s: float = 60.0,
        pace: Pace | None = None,
    ) -> None:
        self._spec = spec
        self._pace = pace or Pace()
        self._idle_close_s = idle_close_s
        self._links: dict[str, Link[CommandT, EventT]] = {}

    def link(self, address: str) -> Link[CommandT, EventT]:
        """Returns the live link to an address."""
        link = self._links.get(address)
        if link is None or link.is_broken:
            link = self._links[address] = Link(self._spec, address, self._pace)
        return link

    async def close_idle(self) -> None:
        """Closes links without requests for the idle time; call now and then."""
        oldest = time.monotonic() - self._idle_close_s
        for address, link in list(self._links.items()):
            if link.is_broken or (link.idle_since_s is not None and link.idle_since_s < oldest):
                del self._links[address]
                await link.close()

    async def close(self) -> None:
        """Closes all links."""
        links, self._links = list(self._links.values()), {}
        for link in links:
            await link.close()
