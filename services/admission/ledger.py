"""Who holds a permit and who waits for one. Pure bookkeeping; time is an argument.

A permit is granted, its prompt gets computed ("prefill done"), and it is released: one way in, one
way out. Waiting requests stand in the order of priority, then arrival.
"""

import bisect
import itertools
from dataclasses import dataclass, field

from baton.requests import Priority
from services.admission.averages import MovingAverage, SharedTime
from services.admission.policy import MeshLoad


@dataclass(slots=True, eq=False)
class Permit:
    """The right to run one request.

    `prefill_mark_s` is a reading of the pool's shared clock, `prefilled_s` one of the caller's.
    """

    prefill_mark_s: float
    prefilled_s: float | None = None


@dataclass(slots=True, order=True)
class Waiter:
    """A place in the queue; smaller is earlier."""

    rank: tuple[int, int]
    priority: Priority = field(compare=False)


class PermitLedger:
    """All permits and waiters of one admission service."""

    def __init__(self) -> None:
        self.prefill_workers = 0
        self.decode_workers = 0
        self._prefilling: set[Permit] = set()
        self._decoding: set[Permit] = set()
        self._queue: list[Waiter] = []
        self._arrivals = itertools.count()
        self._prefill_clock = SharedTime()
        self._prefill_s = MovingAverage()
        self._decode_s = MovingAverage()

    @property
    def waiting(self) -> int:
        """Requests waiting for a permit."""
        return len(self._queue)

    @property
    def permits(self) -> int:
        """Live permits."""
        return len(self._prefilling) + len(self._decoding)

    def set_workers(self, now_s: float, prefill_workers: int, decode_workers: int) -> None:
        """Takes the sizes of the pools; permits beyond a smaller capacity stay valid."""
        self.prefill_workers = prefill_workers
        self.decode_workers = decode_workers
        self._share(now_s)

    def load(self, priority: Priority | None = None) -> MeshLoad:
        """Returns what a request of this priority finds; None counts everybody as ahead."""
        ahead = len(self._queue) if priority is None else self._ahead_of(priority)
        return MeshLoad(
            prefill_workers=self.prefill_workers,
            decode_workers=self.decode_workers,
            prefill_permits=len(self._prefilling),
            decode_permits=len(self._decoding),
            waiting_ahead=ahead,
            prefill_s=self._prefill_s.value,
            decode_s=self._decode_s.value,
        )

    def grant(self, now_s: float) -> Permit:
        """Makes a permit; the caller asked `load().has_room` or took a waiter from `next_up`."""
        permit = Permit(self._prefill_clock.read(now_s))
        self._prefilling.add(permit)
        self._share(now_s)
        return permit

    def prefill_done(self, permit: Permit, now_s: float) -> None:
        """Moves a permit from prefill to decode; again it does nothing."""
        if permit not in self._prefilling:
            return
        self._prefill_s.add(self._prefill_clock.read(now_s) - permit.prefill_mark_s)
        self._prefilling.remove(permit)
        self._decoding.add(permit)
        permit.prefilled_s = now_s
        self._share(now_s)

    def release(self, permit: Permit, now_s: float) -> None:
        """Ends a permit, wherever it stands."""
        if permit.prefilled_s is None:
            self._prefilling.remove(permit)
        else:
            self._decoding.remove(permit)
            self._decode_s.add(now_s - permit.prefilled_s)
        self._share(now_s)

    def enqueue(self, priority: Priority) -> Waiter:
        """Takes a place behind all of the same or a higher priority."""
        waiter = Waiter((-priority, next(self._arrivals)), priority)
        bisect.insort(self._queue, waiter)
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """Gives the place up."""
        self._queue.remove(waiter)

    def position(self, waiter: Waiter) -> int:
        """Returns how many stand before the waiter."""
        return bisect.bisect_left(self._queue, waiter)

    def next_up(self) -> Waiter | None:
        """Returns the first waiter if there is room for it; it keeps its place until `leave`."""
        has_room = self.permits < self.load().capacity
        return self._queue[0] if self._queue and has_room else None

    def last(self) -> Waiter | None:
        """Returns the waiter who stands last."""
        return self._queue[-1] if self._queue else None

    def _ahead_of(self, priority: Priority) -> int:
        return bisect.bisect_left(self._queue, Waiter((-priority + 1, -1), priority))

    def _share(self, now_s: float) -> None:
        workers = self.prefill_workers or self.decode_workers
        self._prefill_clock.share(now_s, len(self._prefilling), workers)
