"""Makes the policy's picture: the registry's workers, the routers' traffic, the orchestrator."""

import time
from collections.abc import Callable, Mapping, Sequence

from baton.latency import CostModel
from baton.state.fleet import FleetView
from baton.state.members import WorkerView
from baton.state.records import WorkerRole, WorkerStats
from baton.state.traffic import TrafficReader
from services.autoscaler.orchestrators.base import Orchestrator, PoolReplicas
from services.autoscaler.state import FleetState, Pool, PoolState

_ROLES = {Pool.PREFILL: WorkerRole.PREFILL, Pool.DECODE: WorkerRole.DECODE}


class Observer:
    """Looks at everything once. `replicas` is what the orchestrator said at the last look."""

    def __init__(
        self,
        fleet: FleetView,
        traffic: TrafficReader,
        orchestrator: Orchestrator,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet = fleet
        self._traffic = traffic
        self._orchestrator = orchestrator
        self._clock = clock
        self.replicas: Mapping[Pool, PoolReplicas] = {}

    async def look(self) -> FleetState:
        """Returns the fleet now. Raises OrchestratorError and what Redis raises."""
        self.replicas = await self._orchestrator.observe()
        routers = [view.record.incarnation for view in self._fleet.workers(WorkerRole.ROUTER)]
        traffic = await self._traffic.read(routers)
        return FleetState(
            self._pool(Pool.PREFILL), self._pool(Pool.DECODE), traffic, self._fleet.is_fresh
        )

    def idlest(self, pool: Pool) -> list[str]:
        """Returns a pool's workers, those with the least to do first: they drain soonest."""
        return [view.record.worker_id for view in sorted(self._serving(pool), key=_load)]

    def _serving(self, pool: Pool) -> list[WorkerView]:
        return [
            view
            for view in self._fleet.workers(_ROLES[pool])
            if view.stats is None or not view.stats.draining
        ]

    def _pool(self, pool: Pool) -> PoolState:
        workers = self._fleet.workers(_ROLES[pool])
        serving = self._serving(pool)
        stats = [view.stats for view in serving if view.stats is not None]
        known = self.replicas[pool]
        return PoolState(
            ready=len(serving),
            starting=max(0, known.wanted - known.failed - len(serving)),
            draining=len(workers) - len(serving),
            queued_requests=sum(it.queued_requests for it in stats),
            queued_tokens=sum(it.queued_tokens for it in stats),
            running_requests=sum(it.prefilling_requests + it.decoding_requests for it in stats),
            busy_share=_mean([it.busy_share for it in stats]),
            kv_used_share=_mean([it.kv_blocks_owned / max(1, it.kv_blocks_total) for it in stats]),
            kv_tokens=min(
                (view.record.kv_blocks * view.record.block_size for view in serving), default=0
            ),
            costs=_costs(stats),
        )


def _load(view: WorkerView) -> tuple[int, int]:
    stats = view.stats
    if stats is None:
        return 0, 0
    return stats.queued_requests + stats.prefilling_requests + stats.decoding_requests, (
        stats.kv_blocks_owned
    )


def _costs(stats: Sequence[WorkerStats]) -> CostModel:
    """Returns the costs of the worker that measured most; the declared ones before any did."""
    known = [it.costs for it in stats if it.costs is not None]
    return max(known, key=lambda it: it.prefill_samples + it.step_samples, default=CostModel())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
