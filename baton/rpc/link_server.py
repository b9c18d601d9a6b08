"""The serving side of links; see baton/rpc/link.py for what a link is."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Generic

import grpc
from google.rpc import code_pb2

from baton.errors import BatonError, CancelledByPeerError, DeadlineError, InternalError
from baton.rpc.link import CommandT, EventT, LinkSpec
from baton.rpc.pace import LONGEST_BUSY_S, Outbox, Pace
from baton.rpc.status import to_end
from baton.v1 import link_pb2

logger = logging.getLogger(__name__)


class ServedCall(Generic[CommandT, EventT]):
    """One request on a link, from the serving side."""

    def __init__(self, session: "_Session[CommandT, EventT]", first: Any) -> None:
        self.start: CommandT = first
        self.traceparent: str = first.context.traceparent
        self.deadline_s: float | None = None
        if first.context.HasField("timeout_s"):
            self.deadline_s = time.monotonic() + first.context.timeout_s
        self._session = session
        self._stream_id: int = first.stream_id
        self._credit: int = first.context.window
        self._changed = asyncio.Event()
        self._commands: deque[CommandT] = deque()
        self._last: tuple[EventT, int] | None = None
        self.is_late = False

    def time_left_s(self) -> float | None:
        """Returns what is left of the deadline, or None without one."""
        return None if self.deadline_s is None else self.deadline_s - time.monotonic()

    async def send(self, event: EventT, hold_s: float = 0.0) -> None:
        """Sends an event; waits while the opener has granted no room.

        The event may be held back for `hold_s` to travel with later ones, or with those of others.
        """
        while self._credit <= 0:
            self._changed.clear()
            await self._changed.wait()
        self._credit -= 1
        self._session.post(self._stream_id, event, hold_s)
        self._last = event, self._session.messages

    def waiting(self) -> EventT | None:
        """Returns the request's last event if it still waits for its message, to be added to."""
        if self._last is None or self._last[1] != self._session.messages:
            return None
        return self._last[0]

    async def next_command(self) -> CommandT:
        """Waits for the next further command about this request."""
        while not self._commands:
            self._changed.clear()
            await self._changed.wait()
        return self._commands.popleft()

    def pending_commands(self) -> list[CommandT]:
        """Takes the commands that arrived and nobody waited for, as when the request is over."""
        pending = list(self._commands)
        self._commands.clear()
        return pending

    def receive(self, command: Any) -> None:
        """Called by the session with each further command."""
        if command.WhichOneof("command") == "credit":
            self._credit += command.credit.events
        else:
            self._commands.append(command)
        self._changed.set()


Handler = Callable[[ServedCall[CommandT, EventT]], Coroutine[Any, Any, None]]


async def serve_link(
    spec: LinkSpec[CommandT, EventT],
    handler: Handler[CommandT, EventT],
    context: grpc.aio.ServicerContext[Any, Any],
    pace: Pace | None = None,
) -> None:
    """Serves one link until the peer closes or breaks it; then all its requests are cancelled.

    Each request runs `handler` in a task of its own. A handler that returns ends its request well,
    a BatonError becomes its end frame, and its cancellation is confirmed to the opener once it has
    really stopped. Returns only after every handler has. All links of a process should share one
    `pace`.
    """
    session = _Session(spec, handler, pace or Pace())
    try:
        async with asyncio.TaskGroup() as tasks:
            writer = tasks.create_task(session.write(context))
            await session.read(context)
            writer.cancel()
    finally:
        await session.stop()


class _Session(Generic[CommandT, EventT]):
    def __init__(
        self, spec: LinkSpec[CommandT, EventT], handler: Handler[CommandT, EventT], pace: Pace
    ) -> None:
        self._spec = spec
        self._handler = handler
        self._calls: dict[int, tuple[ServedCall[CommandT, EventT], asyncio.Task[None]]] = {}
        self._pace = pace
        self.messages = 0
        self._outbox: Outbox[EventT] = Outbox(pace)

    async def read(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        try:
            while (request := await context.read()) is not grpc.aio.EOF:
                self._pace.note()
                for command in request.commands:
                    self._take(command)
        except grpc.aio.BaseError:
            return  # the server stopped meanwhile, which ends the link as well

    async def write(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        while True:
            events = await self._outbox.take()
            self.messages += 1
            try:
                await context.write(self._spec.response(events=events))
            except grpc.aio.BaseError:
                return  # the peer left or the server stopped meanwhile, which `read` learns too

    def post(self, stream_id: int, event: EventT, hold_s: float = 0.0) -> None:
        event.stream_id = stream_id  # type: ignore[attr-defined]  # every event has one
        self._outbox.post(event, hold_s)

    async def stop(self) -> None:
        tasks = [task for _, task in self._calls.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _take(self, command: Any) -> None:
        kind = command.WhichOneof("command")
        known = self._calls.get(command.stream_id)
        if kind == "start" and known is None:
            self._start(command)
        elif known is None:
            return  # it ended while the command was on its way
        elif kind == "cancel":
            known[1].cancel()
        else:
            known[0].receive(command)

    def _start(self, command: Any) -> None:
        call: ServedCall[CommandT, EventT] = ServedCall(self, command)
        stream_id: int = command.stream_id
        self._outbox.peer_interval_s = min(command.context.interval_s, LONGEST_BUSY_S)
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._handler(call))
        self._calls[stream_id] = (call, task)
        left_s = call.time_left_s()
        deadline = None if left_s is None else loop.call_later(left_s, _expire, call, task)
        task.add_done_callback(lambda done: self._finish(stream_id, call, done, deadline))

    def _finish(
        self,
        stream_id: int,
        call: ServedCall[CommandT, EventT],
        task: asyncio.Task[None],
        deadline: asyncio.TimerHandle | None,
    ) -> None:
        if deadline is not None:
            deadline.cancel()
        del self._calls[stream_id]
        self.post(stream_id, self._spec.event(end=_end_of(task, is_late=call.is_late)))


def _expire(call: ServedCall[Any, Any], task: asyncio.Task[None]) -> None:
    call.is_late = True
    task.cancel()


def _end_of(task: asyncio.Task[None], *, is_late: bool) -> link_pb2.LinkEnd:
    if task.cancelled():
        if is_late:
            return to_end(DeadlineError("the request's deadline passed"))
        return to_end(CancelledByPeerError("the request was cancelled"))
    error = task.exception()
    if error is None:
        return link_pb2.LinkEnd(code=code_pb2.OK)
    if isinstance(error, BatonError):
        return to_end(error)
    logger.error("request failed by a bug", exc_info=error)
    return to_end(InternalError(f"internal error: {type(error).__name__}"))
