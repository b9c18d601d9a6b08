"""Who waits for a permit, and whose turn it is. Pure bookkeeping; time is an argument.

Classes come in order of priority. Within a class tenants take turns so that each gets an equal
share of the prompt tokens that no cache holds (start-time fair queueing: whoever was served least
is next; weights make shares unequal). Within a tenant the earliest deadline is first. Who has
waited too long in a class moves up to the next one, so nobody starves.
"""

import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from baton.requests import Priority
from services.admission.policy import PermitRequest

PROMOTE_AFTER_TARGETS = 4.0
"""A wait of so many TTFT targets moves a request up a class."""

_MOST_TENANTS = 4096
"""Tenants whose share is remembered while they have nobody waiting."""


@dataclass(slots=True, eq=False)
class Waiter:
    """A request that waits. `work_s` is the worker time that its prompt needs.

    `band` is its class in the queue, which rises with promotion; `order` ranks it in its tenant's
    queue. `load` is the load that it found when it came.
    """

    request: PermitRequest
    number: int
    arrived_s: float
    due_s: float
    work_s: float
    predicted_ttft_s: float = 0.0
    load: float = 0.0
    band: Priority = Priority.NORMAL
    entered_s: float = 0.0

    @property
    def order(self) -> tuple[float, int]:
        """Earliest deadline first, then first come."""
        return self.due_s, self.number


@dataclass(slots=True)
class _Band:
    tenants: dict[str, list[Waiter]] = field(default_factory=dict)
    oldest: dict[int, Waiter] = field(default_factory=dict)
    work_s: float = 0.0


class WaitingRoom:
    """The central queue. `weight_of` tells a tenant's share relative to others."""

    def __init__(self, promote_after_s: float, weight_of: Callable[[str], float]) -> None:
        self._promote_after_s = promote_after_s
        self._weight_of = weight_of
        self._bands = {priority: _Band() for priority in Priority}
        self._served: dict[str, float] = {}
        self._reached = 0.0
        self.promotions = 0

    def __len__(self) -> int:
        return sum(len(band.oldest) for band in self._bands.values())

    def __iter__(self) -> Iterator[Waiter]:
        for priority in sorted(Priority, reverse=True):
            yield from self._bands[priority].oldest.values()

    def add(self, waiter: Waiter, now_s: float) -> None:
        """Takes a waiter in."""
        self._enter(waiter, waiter.request.priority, now_s)

    def remove(self, waiter: Waiter) -> None:
        """Lets a waiter go, whose turn has come or who gave up."""
        band = self._bands[waiter.band]
        del band.oldest[waiter.number]
        band.work_s = band.work_s - waiter.work_s if band.oldest else 0.0
        tenant = waiter.request.tenant
        line = band.tenants[tenant]
        del line[bisect.bisect_left(line, waiter.order, key=lambda it: it.order)]
        if not line:
            del band.tenants[tenant]

    def head(self, now_s: float) -> Waiter | None:
        """Returns whose turn it is; it keeps its place until `remove`."""
        self._promote(now_s)
        for priority in sorted(Priority, reverse=True):
            tenants = self._bands[priority].tenants
            if tenants:
                return tenants[min(tenants, key=lambda it: (self._share(it), it))][0]
        return None

    def charge(self, waiter: Waiter) -> None:
        """Notes that a waiter was served, which costs its tenant the uncached tokens."""
        tenant = waiter.request.tenant
        self._reached = self._share(tenant)
        cost = max(1, waiter.request.uncached_tokens) / self._weight_of(tenant)
        self._served[tenant] = self._reached + cost
        if len(self._served) > _MOST_TENANTS:
            # Behind what was reached, a tenant is as good as new.
            self._served = {
                name: value for name, value in self._served.items() if value > self._reached
            }

    def length(self, priority: Priority) -> int:
        """Returns how many wait in a class."""
        return len(self._bands[priority].oldest)

    def ahead_of(self, priority: Priority) -> tuple[int, float]:
        """Returns how many wait in this class and above, and the worker time they need."""
        bands = [band for level, band in self._bands.items() if level >= priority]
        return sum(len(band.oldest) for band in bands), sum(band.work_s for band in bands)

    def position(self, waiter: Waiter) -> int:
        """Returns how many stand before a waiter, as if its class had one tenant."""
        above = sum(len(band.oldest) for level, band in self._bands.items() if level > waiter.band)
        own = self._bands[waiter.band].oldest.values()
        return above + sum(other.order < waiter.order for other in own)

    def _enter(self, waiter: Waiter, band: Priority, now_s: float) -> None:
        waiter.band, waiter.entered_s = band, now_s
        room = self._bands[band]
        room.oldest[waiter.number] = waiter
        room.work_s += waiter.work_s
        line = room.tenants.setdefault(waiter.request.tenant, [])
        bisect.insort(line, waiter, key=lambda it: it.order)

    def _promote(self, now_s: float) -> None:
        for band in (Priority.NORMAL, Priority.LOW):
            oldest = self._bands[band].oldest
            while oldest:
                waiter = next(iter(oldest.values()))
                if now_s - waiter.entered_s < self._promote_after_s:
                    break
                self.remove(waiter)
                self._enter(waiter, Priority(band + 1), now_s)
                self.promotions += 1

    def _share(self, tenant: str) -> float:
        """Returns what a tenant was served; who was away does not save up for later."""
        return max(self._served.get(tenant, 0.0), self._reached)
