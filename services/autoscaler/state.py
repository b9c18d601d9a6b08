"""What an autoscaler sees and what it decides, as plain values. Pure."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from baton.latency import CostModel
from baton.traffic import Traffic

__all__ = [
    "Bounds",
    "Decision",
    "FleetState",
    "Pool",
    "PoolState",
    "PoolTarget",
    "Reason",
    "Traffic",
]


class Pool(enum.StrEnum):
    """The two pools that are sized."""

    PREFILL = "prefill"
    DECODE = "decode"

    @property
    def other(self) -> "Pool":
        """The other pool."""
        return Pool.DECODE if self is Pool.PREFILL else Pool.PREFILL


@dataclass(frozen=True, slots=True)
class PoolState:
    """One pool at one moment.

    `ready` workers serve, `starting` were asked for and do not serve yet, `draining` ones take no
    new work and end by themselves. The load is that of the ready ones together; shares are their
    mean, from 0 to 1. `kv_tokens` is what one worker's pool holds.
    """

    ready: int = 0
    starting: int = 0
    draining: int = 0
    queued_requests: int = 0
    queued_tokens: int = 0
    running_requests: int = 0
    busy_share: float = 0.0
    kv_used_share: float = 0.0
    kv_tokens: int = 0
    costs: CostModel = field(default_factory=CostModel)

    @property
    def replicas(self) -> int:
        """Workers that serve or will: what a target is compared with."""
        return self.ready + self.starting

    @property
    def queue_per_worker(self) -> float:
        """Waiting requests per ready worker."""
        return self.queued_requests / max(1, self.ready)


@dataclass(frozen=True, slots=True)
class FleetState:
    """Both pools and the traffic. `is_fresh` is False when this is a picture of the past."""

    prefill: PoolState
    decode: PoolState
    traffic: Traffic
    is_fresh: bool = True

    def pool(self, pool: Pool) -> PoolState:
        """Returns one pool."""
        return self.prefill if pool is Pool.PREFILL else self.decode


class Reason(enum.StrEnum):
    """Why a pool has its target."""

    STEADY = "STEADY"
    """It fits."""
    BELOW_MINIMUM = "BELOW_MINIMUM"
    ABOVE_MAXIMUM = "ABOVE_MAXIMUM"
    QUEUE_LENGTH = "QUEUE_LENGTH"
    """thresholds: waiting requests per worker."""
    GPU_UTILIZATION = "GPU_UTILIZATION"
    """thresholds: busy engine time."""
    KV_CACHE_USAGE = "KV_CACHE_USAGE"
    """thresholds: owned KV blocks."""
    FORECAST = "FORECAST"
    """slo: the demand that is expected when a new worker is ready needs as many."""
    BURSTS = "BURSTS"
    """slo: bursts like the last ones, which no cold start could answer in time, need as many."""
    BACKLOG = "BACKLOG"
    """slo: what waits would wait too long, a new worker's start included."""
    IDLE = "IDLE"
    """The survivors hold the load with margin."""
    START_CANCELLED = "START_CANCELLED"
    """Workers that are not ready yet are not needed any more."""
    TAKES_OVER = "TAKES_OVER"
    """Gains workers of the other pool by a flip of their role."""
    GIVES_AWAY = "GIVES_AWAY"
    """Gives workers to the other pool by a flip of their role."""
    HOLDS = "HOLDS"
    """Could shrink, but was as busy a moment ago, or changed a moment ago."""
    UNSAFE_TO_SHRINK = "UNSAFE_TO_SHRINK"
    """Could shrink by the forecast, but the measured load would not fit the survivors."""
    AT_MAXIMUM = "AT_MAXIMUM"
    """Needs more than its largest size."""
    BUDGET = "BUDGET"
    """Needs more than the workers that both pools may have together."""
    STALE = "STALE"
    """The figures are too old to decide by."""
    MANUAL = "MANUAL"
    """Somebody changed the pool at the orchestrator a while ago; not undone yet."""
    OVERRIDE = "OVERRIDE"
    """Somebody set it by hand."""


@dataclass(frozen=True, slots=True)
class PoolTarget:
    """How many workers a pool is to have, why, and the numbers that say so."""

    replicas: int
    reason: Reason
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """The targets of both pools. `flips` of the changes are to be made by changing roles.

    `flip_to` is the pool that gains by them; the targets count the flips already.
    """

    prefill: PoolTarget
    decode: PoolTarget
    flips: int = 0
    flip_to: Pool = Pool.PREFILL

    def target(self, pool: Pool) -> PoolTarget:
        """Returns one pool's target."""
        return self.prefill if pool is Pool.PREFILL else self.decode


@dataclass(frozen=True, slots=True)
class Bounds:
    """Smallest and largest size of one pool."""

    minimum: int
    maximum: int

    def clamp(self, replicas: int) -> int:
        """Returns the nearest allowed size."""
        return max(self.minimum, min(self.maximum, replicas))
