"""How often a process writes on its links, and the frames that wait for the next message.

A message on an open stream costs a Python process the same whether it carries one frame or a
hundred. While messages are rare each frame leaves at once. When there are many, or the event loop
has little time left, messages of each link keep an interval, which grows until the process is back
at its number of messages a second or the interval at its bound; frames that are ready meanwhile
travel together. An opener tells its interval to whom it opens, so that a busy reader is written to
less often.
"""

import asyncio
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

MESSAGES_PER_S = 1500.0
"""Messages in and out, over all links of a process, from which on they are spaced."""

BUSY_SHARE = 0.5
"""Share of a core that the event loop's thread wants from which on messages are spaced too."""

LONGEST_S = 0.01
"""The most that spacing by the number of messages holds a frame back. Seconds."""

LONGEST_BUSY_S = 0.02
"""The most where the event loop is busy: then every message saved is time for the next request."""

_SHORTEST_S = 0.001
_WINDOW_S = 0.05
_MESSAGE_BYTES = 1 << 20
"""Frames join a message up to this size; one that is longer travels alone."""

_SCHEDULER = Path("/proc/thread-self/schedstat")
_NANO = 1e-9

FrameT = TypeVar("FrameT")


def wanted_core_s() -> float:
    """Returns for how many seconds the calling thread has computed or waited for a core to.

    A thread that gets half a core because others take the rest has no time left either. Where the
    system does not tell how long it waited, only what it computed counts.
    """
    try:
        ran_ns, waited_ns, _ = _SCHEDULER.read_bytes().split()
    except (OSError, ValueError):
        return time.thread_time()
    return (int(ran_ns) + int(waited_ns)) * _NANO


class Pace:
    """The interval between two messages on one link, from all that the process has to do.

    `busy_clock` counts the seconds in which the calling thread, the event loop's, had work to do.
    """

    def __init__(
        self,
        messages_per_s: float = MESSAGES_PER_S,
        clock: Callable[[], float] = time.monotonic,
        busy_clock: Callable[[], float] = wanted_core_s,
    ) -> None:
        self._messages_per_s = messages_per_s
        self._clock = clock
        self._busy_clock = busy_clock
        self._since_s = clock()
        self._busy_since_s = busy_clock()
        self._messages = 0
        self.interval_s = 0.0

    def note(self) -> None:
        """Counts one message, in or out."""
        self._messages += 1
        elapsed_s = self._clock() - self._since_s
        if elapsed_s < _WINDOW_S:
            return
        busy_s = self._busy_clock()
        busy = (busy_s - self._busy_since_s) / elapsed_s / BUSY_SHARE
        excess = self._messages / elapsed_s / self._messages_per_s
        longest_s = LONGEST_BUSY_S if busy > 1 else LONGEST_S
        wanted_s = max(self.interval_s, _SHORTEST_S) * max(excess, busy)
        self.interval_s = min(wanted_s, longest_s) if wanted_s > _SHORTEST_S else 0.0
        self._since_s += elapsed_s
        self._busy_since_s = busy_s
        self._messages = 0


class Outbox(Generic[FrameT]):
    """Frames on their way into one link's next message, in order.

    `peer_interval_s` is the interval that the peer asked for.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._frames: list[FrameT] = []
        self._changed = asyncio.Event()
        self._due_s = math.inf
        self._wrote_s = -math.inf
        self.peer_interval_s = 0.0

    def post(self, frame: FrameT, hold_s: float = 0.0) -> None:
        """Queues a frame, which may be held back for `hold_s` to travel with later ones."""
        self._frames.append(frame)
        due_s = time.monotonic() + hold_s
        if due_s < self._due_s:
            self._due_s = due_s
            self._changed.set()

    async def take(self) -> list[FrameT]:
        """Waits until a message is due and returns its frames."""
        while (wait_s := self._wait_s()) > 0:
            self._changed.clear()
            await self._wait_changed(wait_s)
        frames = self._first_frames()
        self._wrote_s = time.monotonic()
        self._due_s = self._wrote_s if self._frames else math.inf
        self._pace.note()
        return frames

    def _wait_s(self) -> float:
        interval_s = max(self._pace.interval_s, self.peer_interval_s)
        return max(self._due_s, self._wrote_s + interval_s) - time.monotonic()

    async def _wait_changed(self, wait_s: float) -> None:
        if wait_s == math.inf:
            await self._changed.wait()
            return
        timer = asyncio.get_running_loop().call_later(wait_s, self._changed.set)
        try:
            await self._changed.wait()
        finally:
            timer.cancel()

    def _first_frames(self) -> list[FrameT]:
        """Takes out as many as a message should carry: long prompts together could be too long."""
        frames, size = self._frames, 0
        for at, frame in enumerate(frames):
            message: Any = frame
            size += message.ByteSize()
            if size > _MESSAGE_BYTES and at:
                self._frames = frames[at:]
                return frames[:at]
        self._frames = []
        return frames
