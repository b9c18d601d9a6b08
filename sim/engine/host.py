"""Workers of one host: each computes slower while others of the same host compute.

They share memory bandwidth, caches and, with as many workers as cores, the time that passing tokens
on takes. By how much is measured, see `bench.parity`. A worker's steps are timed by a clock of its
own, which runs slower than simulated time while others compute, so that a step's work is the same
whoever comes and goes meanwhile.
"""

from dataclasses import dataclass
from typing import Any

from sim.engine.events import EventLoop, Handler


@dataclass(frozen=True, slots=True)
class Sharing:
    """How many times as long computing takes while one other worker of the host computes.

    `messages` is how many times as long the way of a message takes while any worker does.
    """

    prefill: float = 1.0
    decode: float = 1.0
    messages: float = 1.0


class SharedHost:
    """The clocks of one host's workers."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._clocks: list[HostClock] = []

    def clock(self, slowdown: float) -> "HostClock":
        """Returns the clock of one more worker, which each other busy one slows down."""
        made = HostClock(self._loop, self, slowdown)
        self._clocks.append(made)
        return made

    @property
    def is_busy(self) -> bool:
        """True while any worker computes."""
        return any(clock.is_busy for clock in self._clocks)

    def settle(self) -> None:
        """Gives each clock its pace; call when a worker began or ceased to compute."""
        busy = sum(clock.is_busy for clock in self._clocks)
        for clock in self._clocks:
            clock.pace(busy - clock.is_busy)


class HostClock:
    """A worker's own time, and the one event it waits for: the end of its step."""

    def __init__(self, loop: EventLoop, host: SharedHost, slowdown: float) -> None:
        self._loop = loop
        self._host = host
        self._slowdown = slowdown
        self._others = 0
        self._rate = 1.0
        self._own_s = 0.0
        self._since_s = loop.now_s
        self._version = 0
        self._next: tuple[float, Handler, Any] | None = None

    @property
    def now_s(self) -> float:
        """The worker's own time."""
        return self._own_s + (self._loop.now_s - self._since_s) * self._rate

    @property
    def is_busy(self) -> bool:
        """True while the worker computes."""
        return self._next is not None

    def at(self, time_s: float, handler: Handler, payload: Any = None) -> None:
        """Calls `handler(payload)` at `time_s` of this clock, instead of what was waited for."""
        self._next = (max(time_s, self.now_s), handler, payload)
        self._reschedule()
        self._host.settle()

    def after(self, delay_s: float, handler: Handler, payload: Any = None) -> None:
        """Calls `handler(payload)` after `delay_s` of this clock; see `at`."""
        self.at(self.now_s + delay_s, handler, payload)

    def pace(self, others: int) -> None:
        """Runs from now on as it does while so many other workers compute."""
        if others == self._others:
            return
        self._own_s, self._since_s = self.now_s, self._loop.now_s
        self._others = others
        self._rate = 1 / (1 + (self._slowdown - 1) * others)
        self._reschedule()

    def _reschedule(self) -> None:
        self._version += 1
        if self._next is not None:
            left_s = self._next[0] - self.now_s
            self._loop.after(left_s / self._rate, self._fire, self._version)

    def _fire(self, version: int) -> None:
        if version != self._version or self._next is None:
            return
        time_s, handler, payload = self._next
        self._own_s, self._since_s = time_s, self._loop.now_s
        self._next = None
        handler(payload)
        self._host.settle()
