"""Simulated time: a heap of events, ordered by time and then by when they were scheduled."""

import heapq
import itertools
from collections.abc import Callable
from typing import Any, Protocol

Handler = Callable[[Any], None]
"""Called with the payload it was scheduled with."""


class Clock(Protocol):
    """A time, and what is to happen in it."""

    @property
    def now_s(self) -> float:
        """The time."""
        ...

    def at(self, time_s: float, handler: Handler, payload: Any = None) -> None:
        """Calls `handler(payload)` at `time_s`, or now when that is over."""
        ...

    def after(self, delay_s: float, handler: Handler, payload: Any = None) -> None:
        """Calls `handler(payload)` in `delay_s` seconds."""
        ...


class EventLoop:
    """Runs events in order. Nothing else moves the clock, so equal inputs give equal runs."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.processed = 0
        self._heap: list[tuple[float, int, Handler, Any]] = []
        self._sequence = itertools.count()

    def at(self, time_s: float, handler: Handler, payload: Any = None) -> None:
        """Calls `handler(payload)` at `time_s`, or now when that is over."""
        if time_s < self.now_s:
            time_s = self.now_s
        heapq.heappush(self._heap, (time_s, next(self._sequence), handler, payload))

    def after(self, delay_s: float, handler: Handler, payload: Any = None) -> None:
        """Calls `handler(payload)` in `delay_s` seconds."""
        self.at(self.now_s + delay_s, handler, payload)

    def run(self) -> None:
        """Processes events until none is left."""
        heap = self._heap
        while heap:
            self.now_s, _, handler, payload = heapq.heappop(heap)
            self.processed += 1
            handler(payload)
