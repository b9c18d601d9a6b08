"""The thread that owns a wire: runs commands, advances writes, collects notices, and sleeps.

Calls into NIXL may block for as long as a copy takes, so the event loop makes none. Everybody
else talks to this thread by commands and futures. How long it sleeps follows from how long
nothing happened: briefly while writes are under way or notices are due, and until it is woken
when there is nothing to do.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from baton.errors import BatonError, StartupError, TransferError
from baton.kv.incoming import IncomingTransfers
from baton.kv.notices import PoolMetadata
from baton.kv.outgoing import OutgoingWrites, Peer
from baton.kv.transfer import PoolMemory
from baton.kv.wire import Wire

logger = logging.getLogger(__name__)

T = TypeVar("T")

START_TIMEOUT_S = 60.0
"""Longest opening of a wire; it loads libraries and may pin the whole pool."""

SHORTEST_SLEEP_S = 50e-6
BUSY_SLEEP_S = 0.5e-3
"""Longest sleep while a write is under way or a receipt waits for its notices."""
EXPECTING_SLEEP_S = 1e-3
"""Longest sleep while transfers are expected: a first transfer needs the reader's progress."""
IDLE_SLEEP_S = 0.25
"""Sleep of an idle wire that needs polling: late notices and closing connections."""
LINGER_S = 0.1
"""After the last event an idle wire is still watched closely: its last notice may be under way."""


class Mover:
    """Owns a wire on a thread of its own."""

    def __init__(self, agent: str, wire: Wire, incoming: IncomingTransfers, timeout_s: float):
        self._agent = agent
        self._wire = wire
        self._incoming = incoming
        self._timeout_s = timeout_s
        self._commands: deque[Callable[[], None]] = deque()
        self._bell = _Bell()
        self._active: dict[OutgoingWrites, None] = {}
        self._peers: dict[str, Peer] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._changed_s = 0.0
        self._turned_s = 0.0
        self._awake_since_s: float | None = None
        self._stopped: Future[None] | None = None
        self._has_ended = False
        self._replies: set[Future[Any]] = set()

    # Called on the event loop.

    async def start(self, memory: PoolMemory) -> bytes:
        """Starts the thread, opens the wire and returns its connection bytes."""
        assert self._thread is None
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name=f"kv-{self._agent}", daemon=True)
        self._thread.start()
        try:
            opened = self.call(lambda: self._wire.open(memory, self._bell.ring))
            return await self.reply(opened, START_TIMEOUT_S)
        except (BatonError, StartupError):
            await self.stop()
            raise

    async def stop(self) -> None:
        """Ends all transfers, closes the wire and ends the thread."""
        if self._thread is None or not self._thread.is_alive():
            return
        stopped: Future[None] = self.new_reply()
        self.post(lambda: self._begin_stop(stopped))
        await self.reply(stopped)

    async def reply(self, future: Future[T], timeout_s: float | None = None) -> T:
        """Waits for a future that the thread will set.

        Raises TransferError (MOVER_ENDED) when the thread is not running, and MOVER_STUCK when it
        did not come round for the deadline because a call into the wire did not return.
        """
        if self._has_ended or self._thread is None:
            self._fail_replies()
        waiting = asyncio.wrap_future(future)
        waiting.add_done_callback(_mark_retrieved)
        while not waiting.done():
            asked_s = time.monotonic()
            await asyncio.wait({waiting}, timeout=timeout_s or self._timeout_s)
            if not waiting.done() and self._turned_s < asked_s:
                raise TransferError("the transfer thread does not answer", reason="MOVER_STUCK")
        return waiting.result()

    # Called on any thread.

    def new_reply(self) -> Future[Any]:
        """Returns a future for `reply` that fails if the thread ends before it set it."""
        future: Future[Any] = Future()
        # Running futures cannot be cancelled by a waiter that is, so setting them is safe.
        future.set_running_or_notify_cancel()
        future.add_done_callback(self._replies.discard)
        self._replies.add(future)
        return future

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Runs `function` on the thread; typed errors reach the future."""
        answer: Future[T] = self.new_reply()

        def run() -> None:
            try:
                answer.set_result(function())
            except (BatonError, StartupError) as error:
                answer.set_exception(error)

        self.post(run)
        return answer

    def post(self, command: Callable[[], None]) -> None:
        """Runs `command` on the thread, after all commands posted before."""
        self._commands.append(command)
        self._bell.ring()

    def wake(self) -> None:
        """Makes the thread look again at what is expected and at what arrived."""
        self._bell.ring()

    def peer(self, agent: str) -> Peer | None:
        """Returns a peer that was introduced and not lost since."""
        peer = self._peers.get(agent)
        return peer if peer is not None and peer.failure is None else None

    def fault(self) -> str:
        """Returns why the thread moves nothing, empty while it does."""
        if self._has_ended:
            return "the transfer thread ended"
        awake_s = self._awake_since_s
        if awake_s is not None and time.monotonic() - awake_s > self._timeout_s:
            return "the transfer thread hangs in a call"
        return ""

    def paths(self) -> dict[str, str]:
        """Returns how bytes get to each peer that is not lost."""
        return {agent: peer.path for agent, peer in list(self._peers.items()) if not peer.failure}

    # Called on the thread itself.

    def activate(self, writes: OutgoingWrites) -> None:
        """Advances a transfer until it is idle again."""
        self._active[writes] = None

    def connect(self, metadata: PoolMetadata) -> None:
        """Introduces a peer unless it is known."""
        peer = self._peers.get(metadata.agent)
        if peer is not None and peer.failure is not None:
            raise TransferError(
                f"writes to {metadata.agent} are still ending; try again", reason="PEER_LOST"
            )
        if peer is None:
            self._wire.connect(metadata)
            agent = metadata.agent
            path, write_bytes = self._wire.path(agent), self._wire.write_bytes(agent)
            self._peers[agent] = Peer(metadata, path, write_bytes)

    def disconnect(self, agent: str, closed: Future[None]) -> None:
        """Fails a peer's transfers; answers once no write to it is under way."""
        peer = self._peers.get(agent)
        if peer is None:
            closed.set_result(None)
            return
        peer.closed.append(closed)
        peer.lose("it was disconnected")

    def _begin_stop(self, stopped: Future[None]) -> None:
        self._stopped = stopped
        for peer in self._peers.values():
            peer.lose("this worker stops")

    def _run(self) -> None:
        try:
            while self._stopped is None or self._peers:
                self._turn()
            self._wire.close()
            self._stopped.set_result(None)
        finally:
            self._has_ended = True
            self._fail_replies()

    def _fail_replies(self) -> None:
        for future in list(self._replies):
            future.set_exception(
                TransferError("the transfer thread is not running", reason="MOVER_ENDED")
            )

    def _turn(self) -> None:
        """One round: sleep, commands, writes, lost peers, notices."""
        changed = self._run_commands(self._sleep_s())
        self._turned_s = time.monotonic()
        changed |= self._advance()
        if changed:
            self._close_lost_peers()
        changed |= self._deliver_notices()
        if changed:
            self._changed_s = time.monotonic()

    def _run_commands(self, sleep_s: float | None) -> bool:
        """Sleeps until the bell rings, at most `sleep_s` seconds, and runs what was asked."""
        self._awake_since_s = None
        has_rung = self._bell.wait(sleep_s)
        self._awake_since_s = time.monotonic()
        while self._commands:
            self._commands.popleft()()
        return has_rung

    def _advance(self) -> bool:
        changed = False
        for writes in list(self._active):
            changed |= writes.advance()
            if writes.is_idle:
                del self._active[writes]
        return changed

    def _close_lost_peers(self) -> None:
        lost = [
            peer
            for peer in self._peers.values()
            if peer.failure is not None and not peer.writes_under_way
        ]
        for peer in lost:
            self._wire.disconnect(peer.metadata.agent)
            del self._peers[peer.metadata.agent]
            for closed in peer.closed:
                closed.set_result(None)

    def _deliver_notices(self) -> bool:
        notices = self._wire.take_notices()
        if notices:
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._incoming.take_all, notices)
        return bool(notices)

    def _sleep_s(self) -> float | None:
        """A quarter of the time since the last change, within what the present state allows."""
        if any(writes.has_room for writes in self._active):
            return 0.0
        quiet_s = time.monotonic() - self._changed_s
        # Whom a receipt is awaited from may reach this pool by another wire than the one back.
        is_awaited = self._incoming.is_awaited
        polls = self._wire.polls_closely(for_strangers=is_awaited or self._incoming.minds_strangers)
        if self._active or (polls and is_awaited):
            longest_s = BUSY_SLEEP_S
        elif polls and (self._incoming.is_expecting or quiet_s < LINGER_S):
            longest_s = EXPECTING_SLEEP_S
        else:
            return IDLE_SLEEP_S if self._wire.needs_polling else None
        return min(longest_s, max(SHORTEST_SLEEP_S, quiet_s / 4))


class _Bell:
    """Wakes one thread; ringing twice before it woke is ringing once.

    A lock and not an Event, whose wait costs several times as much, nor a SimpleQueue: in Python
    3.11 its `get` waits for ever when a timeout of microseconds is over before it began.
    """

    def __init__(self) -> None:
        self._quiet = threading.Lock()
        self._quiet.acquire()

    def ring(self) -> None:
        """Wakes the waiting thread, or lets its next wait return at once."""
        with contextlib.suppress(RuntimeError):  # already rung
            self._quiet.release()

    def wait(self, timeout_s: float | None) -> bool:
        """Waits for a ring and tells whether there was one. None waits without end."""
        return self._quiet.acquire(timeout=-1 if timeout_s is None else timeout_s)


def _mark_retrieved(future: "asyncio.Future[T]") -> None:
    """A waiter that was cancelled leaves nobody to look at the error; that is no fault."""
    if not future.cancelled():
        future.exception()
