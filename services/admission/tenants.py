"""Limits per tenant: requests per second, requests at once, and the weight of its share. Pure."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from services.admission.policy import TENANT_LIMIT, Reject

DEFAULT_TENANT = "default"
"""The entry that holds for every tenant without one of its own."""

_BURST_S = 2.0
"""A tenant may save up so many seconds of its rate for a burst."""

_MOST_BUCKETS = 4096


@dataclass(frozen=True, slots=True)
class TenantLimit:
    """What one tenant may do; None is no limit. `weight` is its share relative to others."""

    requests_per_s: float | None = None
    concurrent: int | None = None
    weight: float = 1.0


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at_s: float


UNLIMITED = TenantLimit()


class TenantGate:
    """Holds tenants to their limits. `replicas` share a rate evenly, as routers spread requests."""

    def __init__(self, limits: Mapping[str, TenantLimit]) -> None:
        self._limits = limits
        self._default = limits.get(DEFAULT_TENANT, UNLIMITED)
        self._limits_anybody = any(
            limit.requests_per_s is not None or limit.concurrent is not None
            for limit in limits.values()
        )
        self._buckets: dict[str, _Bucket] = {}
        self.inside: Counter[str] = Counter()
        self.elsewhere: Mapping[str, int] = {}
        self.replicas = 1

    def limit_of(self, tenant: str) -> TenantLimit:
        """Returns the limits that hold for a tenant."""
        return self._limits.get(tenant, self._default)

    def weight_of(self, tenant: str) -> float:
        """Returns a tenant's share relative to others."""
        return self.limit_of(tenant).weight

    @property
    def limits_anybody(self) -> bool:
        """True where some tenant has a rate or a number of requests to keep to."""
        return self._limits_anybody

    def check(self, now_s: float, tenant: str, stay_s: float) -> Reject | None:
        """Returns why a request may not come in now; else takes one from the tenant's rate.

        `stay_s` is how long a request stays inside on average.
        """
        limit = self.limit_of(tenant)
        if limit.concurrent is not None:
            inside = self.inside[tenant] + self.elsewhere.get(tenant, 0)
            if inside >= limit.concurrent:
                return Reject(TENANT_LIMIT, 0.0, stay_s / max(limit.concurrent, 1))
        if limit.requests_per_s is None:
            return None
        return self._take(now_s, tenant, limit.requests_per_s / self.replicas)

    def enter(self, tenant: str) -> None:
        """Counts a request of a tenant that waits or runs."""
        self.inside[tenant] += 1

    def leave(self, tenant: str) -> None:
        """Ends what `enter` began."""
        self.inside[tenant] -= 1
        if not self.inside[tenant]:
            del self.inside[tenant]

    def _take(self, now_s: float, tenant: str, rate: float) -> Reject | None:
        burst = max(1.0, rate * _BURST_S)
        bucket = self._buckets.setdefault(tenant, _Bucket(burst, now_s))
        bucket.tokens = min(burst, bucket.tokens + (now_s - bucket.at_s) * rate)
        bucket.at_s = now_s
        if bucket.tokens < 1:
            return Reject(TENANT_LIMIT, 0.0, (1 - bucket.tokens) / rate)
        bucket.tokens -= 1
        self._forget()
        return None

    def _forget(self) -> None:
        """Drops the oldest half when there are too many; a full bucket and none are the same."""
        if len(self._buckets) > _MOST_BUCKETS:
            by_age = sorted(self._buckets.items(), key=lambda entry: entry[1].at_s)
            self._buckets = dict(by_age[len(by_age) // 2 :])
