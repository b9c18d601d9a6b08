"""Autoscaling in simulated time: the service's own policy sizes the simulated fleet.

The controller is a `sim.mesh.Controller`: at each look it makes the policy's picture of the fleet,
asks it, and starts, drains and flips workers as an orchestrator would. A worker costs from the
moment it is started to the moment it is gone.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from baton.latency import CostModel
from baton.state.traffic import TrafficMeter
from services.autoscaler.policy import ScalingPolicy
from services.autoscaler.state import Decision, FleetState, Pool, PoolState, Traffic
from sim.mesh import SimMesh
from sim.observe import Observation, Role, WorkerState
from sim.outcome import Ending, Outcome
from sim.results.recorder import Slo
from sim.workload import SimRequest

LOOK_EVERY_S = 5.0
_ROLES = {Pool.PREFILL: Role.PREFILL, Pool.DECODE: Role.DECODE}


@dataclass(frozen=True, slots=True)
class Delays:
    """Seconds until a worker serves: started cold, and come back in another role once drained."""

    start_s: float = 30.0
    flip_s: float = 3.0


class TrafficCounter:
    """Feeds a router's meter with what is offered and what ended."""

    def __init__(self, offload_above_tokens: int, slo: Slo) -> None:
        self.meter = TrafficMeter(offload_above_tokens)
        self._slo = slo

    def counting(self, requests: Iterator[SimRequest]) -> Iterator[SimRequest]:
        """Yields `requests`; each counts once the next one is asked for: when it arrives."""
        for request in requests:
            yield request
            self.meter.offered(request.prompt_tokens)

    def ended(self, outcome: Outcome) -> None:
        """Takes in how a request ended."""
        self.meter.ended(is_met=outcome.meets(self._slo.ttft_s, self._slo.tpot_s))
        if outcome.ending is Ending.SERVED:
            self.meter.finished(outcome.request.prompt_tokens, outcome.request.output_tokens)


@dataclass(slots=True)
class ScalingRecord:
    """What happened to the fleet's size."""

    starting_s: float = 0.0
    """Seconds that workers took to start, cancelled starts included."""
    starts: int = 0
    cancelled: int = 0
    drains: int = 0
    flips: int = 0
    direction_changes: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    sizes: list[tuple[float, int, int]] = field(default_factory=list)
    """Time and size of both pools at each look, starting workers included."""


class AutoscaleController:
    """Applies a policy's decisions to a simulated mesh; give it to `SimMesh.every`."""

    def __init__(
        self,
        mesh: SimMesh,
        policy: ScalingPolicy,
        traffic: Callable[[], Traffic],
        delays: Delays,
        observe: Callable[[float, Decision], None] = lambda now_s, decision: None,
    ) -> None:
        self.record = ScalingRecord()
        self._mesh = mesh
        self._policy = policy
        self._traffic = traffic
        self._delays = delays
        self._observe = observe
        self._starts: dict[Pool, dict[int, float]] = {pool: {} for pool in Pool}
        self._coming: Counter[Pool] = Counter()
        self._busy_s: dict[str, tuple[float, float]] = {}
        self._directions: dict[Pool, int] = {}

    def __call__(self, seen: Observation) -> None:
        """Looks, decides and acts."""
        fleet = FleetState(
            self._pool(Pool.PREFILL, seen), self._pool(Pool.DECODE, seen), self._traffic()
        )
        self._busy_s = {it.name: (seen.now_s, it.busy_s) for it in seen.workers}
        decision = self._policy.decide(seen.now_s, fleet)
        self._observe(seen.now_s, decision)
        sizes = {pool: fleet.pool(pool).replicas for pool in Pool}
        self.record.sizes.append((seen.now_s, sizes[Pool.PREFILL], sizes[Pool.DECODE]))
        self._flip(decision, seen)
        for pool in Pool:
            moved = decision.flips if pool is decision.flip_to else -decision.flips
            self._resize(pool, decision, sizes[pool] + moved, seen)

    def _pool(self, pool: Pool, seen: Observation) -> PoolState:
        role = _ROLES[pool]
        workers = seen.of(role)
        sight_costs = self._costs(role)
        return PoolState(
            ready=len(workers),
            starting=self._starting(pool),
            draining=sum(it.role is role and it.is_draining for it in seen.workers),
            queued_requests=sum(it.queued for it in workers),
            queued_tokens=sum(it.queued_tokens for it in workers),
            running_requests=sum(it.prefilling + it.decoding for it in workers),
            busy_share=_mean([self._busy(it, seen.now_s) for it in workers]),
            kv_used_share=_mean([it.kv_owned_tokens / it.kv_tokens for it in workers]),
            kv_tokens=min((it.kv_tokens for it in workers), default=0),
            costs=sight_costs,
        )

    def _starting(self, pool: Pool) -> int:
        # One whose start just ended joins later in the same moment and counts until then.
        joining = self._mesh.roster.starting.count(_ROLES[pool])
        return len(self._starts[pool]) + self._coming[pool] + joining

    def _busy(self, worker: WorkerState, now_s: float) -> float:
        before_s, busy_s = self._busy_s.get(worker.name, (worker.joined_s, 0.0))
        elapsed_s = now_s - before_s
        # A long step counts when it starts, so a look may see more than the time that passed.
        return min(1.0, (worker.busy_s - busy_s) / elapsed_s) if elapsed_s > 0 else 0.0

    def _costs(self, role: Role) -> CostModel:
        return self._mesh.spec.known_costs(role)

    # --- the orchestrator

    def _flip(self, decision: Decision, seen: Observation) -> None:
        to = decision.flip_to
        leaving = _idlest(seen, _ROLES[to.other], decision.flips)
        for worker in leaving:
            self.record.flips += 1
            self._coming[to] += 1
            self._mesh.roster.drain(worker.name, lambda: self._come_back(to))

    def _come_back(self, to: Pool) -> None:
        self._mesh.loop.after(self._delays.flip_s, self._flipped, to)

    def _flipped(self, to: Pool) -> None:
        self._coming[to] -= 1
        self.record.starting_s += self._delays.flip_s
        self._mesh.roster.add(_ROLES[to])

    def _resize(self, pool: Pool, decision: Decision, size: int, seen: Observation) -> None:
        target = decision.target(pool)
        self.record.reasons[target.reason] += 1
        change = target.replicas - size
        self._note_direction(pool, change)
        for _ in range(change):
            self._start(pool)
        for _ in range(-change):
            if self._starts[pool]:
                self._cancel(pool)
                change += 1
        if change < 0:
            for worker in _idlest(seen, _ROLES[pool], -change):
                self.record.drains += 1
                self._mesh.roster.drain(worker.name)

    def _start(self, pool: Pool) -> None:
        number, self.record.starts = self.record.starts, self.record.starts + 1
        self._starts[pool][number] = self._mesh.loop.now_s
        self._mesh.loop.after(self._delays.start_s, self._started, (pool, number))

    def _started(self, start: tuple[Pool, int]) -> None:
        pool, number = start
        if self._starts[pool].pop(number, None) is not None:
            self.record.starting_s += self._delays.start_s
            self._mesh.roster.add(_ROLES[pool])

    def _cancel(self, pool: Pool) -> None:
        number = max(self._starts[pool])
        self.record.cancelled += 1
        self.record.starting_s += self._mesh.loop.now_s - self._starts[pool].pop(number)

    def _note_direction(self, pool: Pool, change: int) -> None:
        if not change:
            return
        direction = 1 if change > 0 else -1
        self.record.direction_changes += self._directions.get(pool, direction) != direction
        self._directions[pool] = direction


def _idlest(seen: Observation, role: Role, count: int) -> list[WorkerState]:
    """Returns the workers with the least to do, which drain soonest."""
    load = sorted(seen.of(role), key=lambda it: (it.queued_tokens, it.resident_tokens))
    return load[:count]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
