"""How large both pools should be. Pure: state in, decision out, no clock and no I/O.

A policy remembers what it saw and decided, so it is asked at regular intervals and by one caller.
"""

from dataclasses import dataclass
from typing import Protocol

from services.autoscaler.state import (
    Bounds,
    Decision,
    FleetState,
    Pool,
    PoolState,
    PoolTarget,
    Reason,
)


class ScalingPolicy(Protocol):
    """Sizes the pools."""

    name: str

    def decide(self, now_s: float, fleet: FleetState) -> Decision:
        """Returns the targets; `now_s` never goes back."""
        ...

    def learn_start(self, start_s: float) -> None:
        """Notes how many seconds the last worker took to get ready."""
        ...


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The chapter's thresholds of one pool.

    `load` is busy engine time for prefill and owned KV blocks for decode, both as shares.
    """

    bounds: Bounds
    queue_up: float
    queue_down: float
    load_up: float
    load_down: float


class ThresholdPolicy:
    """Each pool by itself: one more above either upper threshold, one less below both lower ones.

    After a change a pool waits `cooldown_up_s` or `cooldown_down_s` before the next one in that
    direction. Workers that start count, so a wait for them starts no more of them.
    """

    name = "thresholds"

    def __init__(
        self,
        prefill: Thresholds,
        decode: Thresholds,
        cooldown_up_s: float = 15.0,
        cooldown_down_s: float = 60.0,
    ) -> None:
        self._thresholds = {Pool.PREFILL: prefill, Pool.DECODE: decode}
        self._cooldown_up_s = cooldown_up_s
        self._cooldown_down_s = cooldown_down_s
        self._changed_s: dict[Pool, float] = {}

    def decide(self, now_s: float, fleet: FleetState) -> Decision:
        """See ScalingPolicy."""
        return Decision(
            self._target(now_s, Pool.PREFILL, fleet), self._target(now_s, Pool.DECODE, fleet)
        )

    def learn_start(self, start_s: float) -> None:
        """See ScalingPolicy: it knows no starts."""

    def _target(self, now_s: float, pool: Pool, fleet: FleetState) -> PoolTarget:
        state, thresholds = fleet.pool(pool), self._thresholds[pool]
        wanted = within_bounds(state, thresholds.bounds)
        if wanted is None and not fleet.is_fresh:
            wanted = PoolTarget(state.replicas, Reason.STALE)
        if wanted is None:
            wanted = self._by_load(now_s, pool, state, thresholds)
        if wanted.replicas != state.replicas:
            self._changed_s[pool] = now_s
        return wanted

    def _by_load(
        self, now_s: float, pool: Pool, state: PoolState, thresholds: Thresholds
    ) -> PoolTarget:
        load, why = state.busy_share, Reason.GPU_UTILIZATION
        if pool is Pool.DECODE:
            load, why = state.kv_used_share, Reason.KV_CACHE_USAGE
        queue, replicas = state.queue_per_worker, state.replicas
        numbers = {"queue_per_worker": queue, "load_share": load}
        since_s = now_s - self._changed_s.get(pool, -float("inf"))
        if queue >= thresholds.queue_up or load >= thresholds.load_up:
            reason = Reason.QUEUE_LENGTH if queue >= thresholds.queue_up else why
            if replicas >= thresholds.bounds.maximum:
                return PoolTarget(replicas, Reason.AT_MAXIMUM, numbers)
            if since_s < self._cooldown_up_s:
                return PoolTarget(replicas, Reason.HOLDS, numbers)
            return PoolTarget(replicas + 1, reason, numbers)
        if queue <= thresholds.queue_down and load <= thresholds.load_down:
            if replicas <= thresholds.bounds.minimum:
                return PoolTarget(replicas, Reason.STEADY, numbers)
            if since_s < self._cooldown_down_s:
                return PoolTarget(replicas, Reason.HOLDS, numbers)
            return PoolTarget(replicas - 1, Reason.IDLE, numbers)
        return PoolTarget(replicas, Reason.STEADY, numbers)


def within_bounds(state: PoolState, bounds: Bounds) -> PoolTarget | None:
    """Returns the target of a pool that is out of its bounds; None for one within them."""
    replicas = state.replicas
    if replicas < bounds.minimum:
        return PoolTarget(bounds.minimum, Reason.BELOW_MINIMUM, {"minimum": bounds.minimum})
    if replicas > bounds.maximum:
        return PoolTarget(bounds.maximum, Reason.ABOVE_MAXIMUM, {"maximum": bounds.maximum})
    return None
