"""The loop around the policy: who acts, what others did, what failed. Redis is a real one."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from redis.asyncio import Redis

from baton.state.background import running
from baton.state.fleet import FleetView
from baton.state.records import WorkerRole
from baton.state.registry import Registration
from baton.state.traffic import TrafficReader
from baton.telemetry.providers import start_telemetry
from services.autoscaler.leader import Leadership
from services.autoscaler.metrics import AutoscalerMetrics
from services.autoscaler.observer import Observer
from services.autoscaler.orchestrators.base import PoolReplicas
from services.autoscaler.overrides import Overrides
from services.autoscaler.scaler import FIRST_RETRY_S, MANUAL_HOLD_S, NEVER_READY_S, Scaler
from services.autoscaler.state import Decision, FleetState, Pool, PoolTarget, Reason
from tests.support.fleet import worker_record
from tests.support.waiting import eventually


@dataclass
class Machines:
    """An orchestrator that keeps sizes and what it was asked for; nothing ever starts."""

    name: str = "machines"
    moves: bool = True
    pools: dict[Pool, PoolReplicas] = field(
        default_factory=lambda: dict.fromkeys(Pool, PoolReplicas(1))
    )
    asked: list[tuple[object, ...]] = field(default_factory=list)
    hangs: bool = False
    """The next call changes its pool and is never answered."""

    async def observe(self) -> Mapping[Pool, PoolReplicas]:
        return dict(self.pools)

    async def scale(self, pool: Pool, replicas: int, victims: Sequence[str] = ()) -> None:
        self.asked.append((pool, replicas))
        self.pools[pool] = PoolReplicas(replicas)
        if self.hangs:
            self.hangs = False
            await asyncio.Event().wait()

    async def move(self, to: Pool, workers: Sequence[str]) -> None:
        self.asked.append((to, tuple(workers)))
        for pool, change in ((to, len(workers)), (to.other, -len(workers))):
            self.pools[pool] = replace(self.pools[pool], wanted=self.pools[pool].wanted + change)

    async def close(self) -> None:
        pass


class Wish:
    """A policy that wants what the test says."""

    name = "wish"

    def __init__(self, prefill: int, decode: int, flips: int = 0) -> None:
        self.flips = flips
        self.sizes = {Pool.PREFILL: prefill, Pool.DECODE: decode}

    def decide(self, now_s: float, fleet: FleetState) -> Decision:
        prefill, decode = (PoolTarget(self.sizes[pool], Reason.FORECAST) for pool in Pool)
        return Decision(prefill, decode, self.flips, Pool.PREFILL)

    def learn_start(self, start_s: float) -> None:
        pass


class Clock:
    """Time that the test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@asynccontextmanager
async def scaling(
    redis: Redis, machines: Machines, wish: Wish, clock: Clock, name: str = "one"
) -> AsyncIterator[Scaler]:
    fleet = FleetView(redis)
    async with running(fleet.run()):
        await fleet.wait_synced()
        yield Scaler(
            Observer(fleet, TrafficReader(redis), machines),
            wish,
            machines,
            Leadership(redis, name, ttl_s=0.3),
            Overrides(redis),
            AutoscalerMetrics(start_telemetry("test", name, "")),
            interval_s=0.05,
            clock=clock,
        )


def why(scaler: Scaler, pool: Pool) -> Reason:
    assert scaler.last is not None
    return scaler.last.decision.target(pool).reason


async def test_leader_that_dies_in_the_midst_leaves_the_rest_to_the_next(redis: Redis) -> None:
    machines, wish, clock = Machines(hangs=True), Wish(3, 4), Clock()
    async with (
        scaling(redis, machines, wish, clock) as first,
        scaling(redis, machines, wish, clock, "two") as second,
    ):
        await first.leadership.hold()
        dying = asyncio.create_task(first.step())
        await eventually(lambda: machines.asked == [(Pool.PREFILL, 3)])
        await second.leadership.hold()
        await second.step()
        assert machines.asked == [(Pool.PREFILL, 3)], "only the leader acts"
        dying.cancel()
        await eventually(second.leadership.hold)
        await second.step()
    assert machines.asked == [(Pool.PREFILL, 3), (Pool.DECODE, 4)]


async def test_size_set_by_others_is_left_alone_for_a_while(redis: Redis) -> None:
    machines, clock = Machines(), Clock()
    async with scaling(redis, machines, Wish(2, 1), clock) as scaler:
        await scaler.leadership.hold()
        await scaler.step()
        machines.pools[Pool.PREFILL] = PoolReplicas(5)
        clock.now_s += 5
        await scaler.step()
        assert why(scaler, Pool.PREFILL) is Reason.MANUAL
        assert machines.asked == [(Pool.PREFILL, 2)]
        clock.now_s += MANUAL_HOLD_S
        await scaler.step()
        assert machines.asked == [(Pool.PREFILL, 2), (Pool.PREFILL, 2)]


async def test_override_holds_until_it_is_given_back(redis: Redis) -> None:
    machines, clock = Machines(), Clock()
    async with scaling(redis, machines, Wish(1, 1, flips=1), clock) as scaler:
        await scaler.leadership.hold()
        await Overrides(redis).set(Pool.DECODE, 6)
        await scaler.step()
        assert why(scaler, Pool.DECODE) is Reason.OVERRIDE
        assert machines.asked == [(Pool.DECODE, 6)], "nobody changes roles against it"
        await Overrides(redis).set(Pool.DECODE, None)
        machines.pools[Pool.DECODE] = PoolReplicas(6)
        clock.now_s += MANUAL_HOLD_S
        await scaler.step()
        assert machines.pools[Pool.DECODE].wanted < 6


async def test_failed_start_is_told_and_tried_again_ever_later(redis: Redis) -> None:
    machines, clock = Machines(), Clock()
    async with scaling(redis, machines, Wish(2, 1), clock) as scaler:
        await scaler.leadership.hold()
        tries = []
        for _ in range(40):
            await scaler.step()
            if machines.asked:
                tries.append(clock.now_s - 1000.0)
                machines.asked.clear()
            machines.pools[Pool.PREFILL] = PoolReplicas(2, 1, "prefill-1 ended with code 2")
            clock.now_s += 5
    assert tries[0] == 0
    gaps = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert gaps[0] >= FIRST_RETRY_S
    assert gaps[1:] == sorted(gaps[1:])
    assert len(tries) >= 3
    assert scaler.problems[0] == "prefill: 1 failed: prefill-1 ended with code 2"


async def test_worker_that_never_gets_ready_is_told(redis: Redis) -> None:
    machines, clock = Machines(), Clock()
    async with scaling(redis, machines, Wish(2, 1), clock) as scaler:
        await scaler.leadership.hold()
        await scaler.step()
        clock.now_s += 5
        await scaler.step()
        assert not scaler.problems
        clock.now_s += NEVER_READY_S + 1
        await scaler.step()
    assert any("not ready for" in problem for problem in scaler.problems)


async def test_roles_change_before_cold_workers_start(redis: Redis) -> None:
    machines, clock = Machines(), Clock()
    machines.pools = {Pool.PREFILL: PoolReplicas(0), Pool.DECODE: PoolReplicas(2)}
    async with (
        scaling(redis, machines, Wish(2, 1, flips=1), clock) as scaler,
        Registration(redis, worker_record("decode-0", "a1", WorkerRole.DECODE)),
        Registration(redis, worker_record("decode-1", "a2", WorkerRole.DECODE)),
    ):
        await scaler.leadership.hold()

        async def sees_both() -> bool:
            return (await scaler.look()).fleet.decode.ready == 2

        await eventually(sees_both)
        await scaler.step()
    assert machines.asked == [(Pool.PREFILL, ("decode-0",)), (Pool.PREFILL, 2)]
    assert machines.pools[Pool.DECODE].wanted == 1
