"""The loop: look, decide, and, as the leader, act.

Every replica looks and decides, so that the next leader knows as much as the last one. Acting is
telling the orchestrator a size, which is the same however often it is told: a leader that dies in
the midst of it leaves nothing half done. What others change is seen at the next look and is not
undone for a while.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from baton.state.connect import REDIS_ERRORS
from services.autoscaler.leader import Leadership
from services.autoscaler.metrics import AutoscalerMetrics
from services.autoscaler.observer import Observer
from services.autoscaler.orchestrators.base import Orchestrator, OrchestratorError
from services.autoscaler.overrides import Overrides
from services.autoscaler.policy import ScalingPolicy
from services.autoscaler.state import Decision, FleetState, Pool, PoolTarget, Reason

logger = logging.getLogger(__name__)

RENEW_EVERY_S = 1.0
MANUAL_HOLD_S = 300.0
"""A size that somebody else set is not changed the other way for this long."""

FIRST_RETRY_S = 30.0
LONGEST_RETRY_S = 480.0
NEVER_READY_S = 300.0
PROBLEMS_KEPT = 8


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen and decided at `at_s`."""

    at_s: float
    fleet: FleetState
    decision: Decision
    overrides: Mapping[Pool, int]


@dataclass(slots=True)
class _Memory:
    """What the loop remembers of one pool."""

    asked: int | None = None
    manual_size: int = 0
    manual_until_s: float = 0.0
    retry_s: float = FIRST_RETRY_S
    retry_at_s: float = 0.0
    starting_since_s: float | None = None


class Scaler:
    """Keeps both pools at the size that the policy decides. `run` it in the service's tasks."""

    def __init__(
        self,
        observer: Observer,
        policy: ScalingPolicy,
        orchestrator: Orchestrator,
        leadership: Leadership,
        overrides: Overrides,
        metrics: AutoscalerMetrics,
        interval_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.policy = policy
        self.orchestrator = orchestrator
        self.leadership = leadership
        self.last: Look | None = None
        self.problems: deque[str] = deque(maxlen=PROBLEMS_KEPT)
        self._observer = observer
        self._overrides = overrides
        self._metrics = metrics
        self._interval_s = interval_s
        self._clock = clock
        self._memory = {pool: _Memory() for pool in Pool}
        self._last_start_s: dict[Pool, float | None] = {}

    async def run(self) -> None:
        """Looks every `interval_s` until cancelled."""
        next_s = self._clock()
        try:
            while True:
                await self.leadership.hold()
                if self._clock() >= next_s:
                    next_s = self._clock() + self._interval_s
                    await self.step()
                await asyncio.sleep(min(RENEW_EVERY_S, max(0.0, next_s - self._clock())))
        finally:
            await self.leadership.leave()

    async def step(self) -> None:
        """Looks and decides once; acts where this process leads."""
        try:
            look = await self.look()
            if self.leadership.is_leader:
                await self._act(look)
        except (OrchestratorError, *REDIS_ERRORS) as error:
            self._complain(str(error))

    async def look(self) -> Look:
        """Looks and decides without acting. Raises OrchestratorError and what Redis raises."""
        now_s = self._clock()
        fleet = await self._observer.look()
        overrides = await self._overrides.read()
        self._learn_starts()
        decision = self.policy.decide(now_s, fleet)
        for pool in Pool:
            self._note_manual(now_s, pool)
            self._note_failures(now_s, pool, fleet)
        prefill, decode = (
            self._adjusted(now_s, pool, decision.target(pool), overrides) for pool in Pool
        )
        decision = _with(decision, prefill, decode)
        self.last = Look(now_s, fleet, decision, overrides)
        self._metrics.looked(self.last, self._observer.replicas)
        return self.last

    def _adjusted(
        self, now_s: float, pool: Pool, target: PoolTarget, overrides: Mapping[Pool, int]
    ) -> PoolTarget:
        if pool in overrides:
            return PoolTarget(overrides[pool], Reason.OVERRIDE, target.numbers)
        memory, wanted = self._memory[pool], self._observer.replicas[pool].wanted
        goes_down = target.replicas < wanted
        if now_s < memory.manual_until_s and goes_down and wanted == memory.manual_size:
            return replace(target, replicas=wanted, reason=Reason.MANUAL)
        return target

    # --- acting

    async def _act(self, look: Look) -> None:
        moved = await self._move(look.decision)
        for pool in Pool:
            target = look.decision.target(pool)
            known, memory = self._observer.replicas[pool], self._memory[pool]
            wanted = known.wanted + moved[pool]
            if target.replicas == wanted and not self._retries(look.at_s, pool):
                memory.asked = target.replicas
                continue
            if target.replicas > wanted and known.failed and look.at_s < memory.retry_at_s:
                memory.asked = wanted
                continue
            _log_scaling(pool, wanted, target)
            await self.orchestrator.scale(pool, target.replicas, self._observer.idlest(pool))
            self._metrics.acted(pool, target)
            memory.asked = target.replicas

    async def _move(self, decision: Decision) -> Mapping[Pool, int]:
        """Has workers change their role; returns by how many that changed each pool."""
        to, count = decision.flip_to, decision.flips
        if not count:
            return dict.fromkeys(Pool, 0)
        workers = self._observer.idlest(to.other)[:count]
        logger.info("move workers=%s to=%s", ",".join(workers), to.value)
        await self.orchestrator.move(to, workers)
        for pool in Pool:
            self._metrics.acted(pool, decision.target(pool))
        return {to: len(workers), to.other: -len(workers)}

    def _retries(self, now_s: float, pool: Pool) -> bool:
        """Tells whether it is time to ask again for workers that failed; waits longer each time."""
        memory = self._memory[pool]
        if not self._observer.replicas[pool].failed or now_s < memory.retry_at_s:
            return False
        memory.retry_at_s = now_s + memory.retry_s
        memory.retry_s = min(2 * memory.retry_s, LONGEST_RETRY_S)
        return True

    # --- what others did

    def _note_manual(self, now_s: float, pool: Pool) -> None:
        memory, wanted = self._memory[pool], self._observer.replicas[pool].wanted
        if memory.asked is not None and wanted != memory.asked:
            logger.info("size set by others pool=%s from=%d to=%d", pool, memory.asked, wanted)
            memory.manual_size, memory.manual_until_s = wanted, now_s + MANUAL_HOLD_S
        memory.asked = wanted

    def _note_failures(self, now_s: float, pool: Pool, fleet: FleetState) -> None:
        known, memory, state = self._observer.replicas[pool], self._memory[pool], fleet.pool(pool)
        if known.failed:
            self._complain(f"{pool.value}: {known.failed} failed: {known.problem}")
            if not memory.retry_at_s:
                memory.retry_at_s = now_s + memory.retry_s
        elif state.ready >= known.wanted:
            memory.retry_s, memory.retry_at_s = FIRST_RETRY_S, 0.0
        if not state.starting:
            memory.starting_since_s = None
            return
        if memory.starting_since_s is None:
            memory.starting_since_s = now_s
        late_s = now_s - memory.starting_since_s
        if late_s > NEVER_READY_S:
            self._complain(f"{pool.value}: {state.starting} not ready for {late_s:.0f} s")

    def _learn_starts(self) -> None:
        for pool, known in self._observer.replicas.items():
            if known.last_start_s is not None and known.last_start_s != self._last_start_s.get(
                pool
            ):
                self._last_start_s[pool] = known.last_start_s
                self.policy.learn_start(known.last_start_s)

    def _complain(self, problem: str) -> None:
        if problem not in self.problems:
            logger.warning("autoscaler: %s", problem)
            self.problems.appendleft(problem)
        self._metrics.failed()


def _with(decision: Decision, prefill: PoolTarget, decode: PoolTarget) -> Decision:
    """Returns the decision with these targets; roles change only where both stand as decided."""
    if (prefill, decode) == (decision.prefill, decision.decode):
        return decision
    return Decision(prefill, decode)


def _log_scaling(pool: Pool, wanted: int, target: PoolTarget) -> None:
    numbers = " ".join(f"{name}={value:.4g}" for name, value in target.numbers.items())
    logger.info(
        "scale pool=%s from=%d to=%d reason=%s %s",
        pool.value,
        wanted,
        target.replicas,
        target.reason.value,
        numbers,
    )
