"""The autoscaler's meters."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from baton.telemetry import names
from baton.telemetry.providers import Attributes, Telemetry
from services.autoscaler.orchestrators.base import PoolReplicas
from services.autoscaler.state import Pool, PoolTarget

if TYPE_CHECKING:
    from services.autoscaler.scaler import Look


class AutoscalerMetrics:
    """Shows the last look and counts what was done."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._last: Look | None = None
        self._replicas: Mapping[Pool, PoolReplicas] = {}
        self._decisions = telemetry.counter(names.SCALINGS)
        self._failures = telemetry.counter(names.SCALING_FAILURES)
        telemetry.gauge(names.POOL_WORKERS, self._workers)
        telemetry.gauge(names.POOL_TARGET, self._targets)

    def looked(self, look: "Look", replicas: Mapping[Pool, PoolReplicas]) -> None:
        """Takes a look."""
        self._last, self._replicas = look, replicas

    def acted(self, pool: Pool, target: PoolTarget) -> None:
        """Counts a change of a pool's size."""
        attributes = {names.ATTR_POOL: pool.value, names.ATTR_REASON: target.reason.value}
        self._decisions.add(1, attributes)

    def failed(self) -> None:
        """Counts something that went wrong."""
        self._failures.add(1, {})

    def _workers(self) -> Iterator[tuple[float, Attributes]]:
        if self._last is None:
            return
        for pool in Pool:
            state = self._last.fleet.pool(pool)
            counts = {
                "ready": state.ready,
                "starting": state.starting,
                "draining": state.draining,
                "failed": self._replicas[pool].failed,
            }
            for name, count in counts.items():
                yield count, {names.ATTR_POOL: pool.value, names.ATTR_STATE: name}

    def _targets(self) -> Iterator[tuple[float, Attributes]]:
        if self._last is not None:
            for pool in Pool:
                target = self._last.decision.target(pool)
                yield target.replicas, {names.ATTR_POOL: pool.value}
