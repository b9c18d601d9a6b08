"""How well targets are met: shares per class and tenant over sliding windows, and burn rates. Pure.

Every request counts that was asked for and was right: one that was turned away or failed met no
target, one that its client cancelled says nothing. The burn rate is the share that missed over the
share that may miss: at 1 the error budget is just used up, at 14.4 a month's is gone in two days.
"""

from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from baton.requests import Priority

WINDOWS: Mapping[str, float] = MappingProxyType({"5m": 300.0, "1h": 3600.0})
"""The windows by name, in seconds."""

OBJECTIVES: Mapping[Priority, float] = MappingProxyType(
    {Priority.HIGH: 0.99, Priority.NORMAL: 0.95, Priority.LOW: 0.8}
)
"""The share of a class's requests that is to meet both targets; the rest is its error budget."""

_BUCKET_S = 10.0


@dataclass(frozen=True, slots=True)
class Attainment:
    """The shares of one class and tenant in one window. An empty tenant stands for all others."""

    priority: Priority
    tenant: str
    window: str
    requests: int
    ttft: float
    tpot: float
    both: float

    @property
    def burn_rate(self) -> float:
        """How many times faster than allowed the error budget is used up."""
        return (1 - self.both) / (1 - OBJECTIVES[self.priority])


@dataclass(slots=True)
class _Bucket:
    started_s: float
    requests: int = 0
    ttft: int = 0
    tpot: int = 0
    both: int = 0


@dataclass(slots=True)
class _Series:
    buckets: deque[_Bucket] = field(default_factory=deque)


class SloTracker:
    """Counts requests that end. Only the `tenants` named are told apart: names are unbounded."""

    def __init__(self, tenants: Collection[str] = ()) -> None:
        self._tenants = frozenset(tenants)
        self._series: dict[tuple[Priority, str], _Series] = {}

    def add(
        self, now_s: float, priority: Priority, tenant: str, *, met_ttft: bool, met_tpot: bool
    ) -> None:
        """Takes a request in that ended, well or not."""
        bucket = self._bucket(now_s, (priority, tenant if tenant in self._tenants else ""))
        bucket.requests += 1
        bucket.ttft += met_ttft
        bucket.tpot += met_tpot
        bucket.both += met_ttft and met_tpot

    def attainments(self, now_s: float) -> Iterator[Attainment]:
        """Yields what is known, highest class first; nothing for windows without requests."""
        for priority, tenant in sorted(self._series, key=lambda key: (-key[0], key[1])):
            for window, seconds in WINDOWS.items():
                found = self._summed((priority, tenant), now_s - seconds)
                if found.requests:
                    yield Attainment(
                        priority,
                        tenant,
                        window,
                        found.requests,
                        found.ttft / found.requests,
                        found.tpot / found.requests,
                        found.both / found.requests,
                    )

    def _bucket(self, now_s: float, key: tuple[Priority, str]) -> _Bucket:
        buckets = self._series.setdefault(key, _Series()).buckets
        if not buckets or now_s - buckets[-1].started_s >= _BUCKET_S:
            buckets.append(_Bucket(now_s))
            oldest_s = now_s - max(WINDOWS.values())
            while buckets[0].started_s < oldest_s:
                buckets.popleft()
        return buckets[-1]

    def _summed(self, key: tuple[Priority, str], since_s: float) -> _Bucket:
        total = _Bucket(since_s)
        for bucket in reversed(self._series[key].buckets):
            if bucket.started_s < since_s:
                break
            total.requests += bucket.requests
            total.ttft += bucket.ttft
            total.tpot += bucket.tpot
            total.both += bucket.both
        return total
