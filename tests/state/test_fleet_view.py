"""What a reader knows of the fleet, on a real Redis."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from baton.errors import StartupError
from baton.state import keys
from baton.state.background import running
from baton.state.connect import connect
from baton.state.fleet import FleetView
from baton.state.members import Members
from baton.state.records import StatsReport, WorkerRole
from baton.state.registry import Registration
from tests.support.fleet import worker_record, worker_stats
from tests.support.redis import RedisServer
from tests.support.waiting import eventually

TTL_S = 0.6


@asynccontextmanager
async def following(redis: Redis, lease_ttl_s: float = TTL_S) -> AsyncIterator[FleetView]:
    view = FleetView(redis, lease_ttl_s=lease_ttl_s, scan_interval_s=0.1)
    async with running(view.run()):
        await view.wait_synced()
        yield view


def ids(view: FleetView, role: WorkerRole = WorkerRole.DECODE) -> list[str]:
    return [it.record.worker_id for it in view.workers(role)]


async def test_late_reader_sees_who_is_there(redis: Redis) -> None:
    prefill = worker_record("prefill-0", "p1", WorkerRole.PREFILL)
    async with Registration(redis, worker_record()) as decode, Registration(redis, prefill):
        await decode.publish_stats(worker_stats(time.time(), queued_requests=3))

        async with following(redis) as view:
            assert ids(view) == ["decode-0"]
            assert ids(view, WorkerRole.PREFILL) == ["prefill-0"]
            [worker] = view.workers(WorkerRole.DECODE)
            assert worker.stats is not None
            assert worker.stats.queued_requests == 3
            assert view.is_fresh


async def test_join_and_leave_are_seen_as_they_happen(redis: Redis) -> None:
    async with following(redis) as view:
        generation = view.generation

        async with Registration(redis, worker_record()):
            await asyncio.wait_for(view.wait_change(generation), 5)
            assert ids(view) == ["decode-0"]

        await eventually(lambda: ids(view) == [])


async def test_stats_arrive_with_their_age(redis: Redis) -> None:
    async with Registration(redis, worker_record()) as worker, following(redis) as view:
        await worker.publish_stats(worker_stats(time.time() - 3, queued_requests=1))
        await eventually(lambda: _queued(view) == 1)
        [old] = view.workers(WorkerRole.DECODE)
        await worker.publish_stats(worker_stats(time.time(), queued_requests=2))
        await eventually(lambda: _queued(view) == 2)
        [new] = view.workers(WorkerRole.DECODE)

        now_s = time.monotonic()
        assert old.is_stale(now_s)
        assert 3 <= old.age_s(now_s) < 6
        assert not new.is_stale(now_s, stale_after_s=2.5)
        assert new.is_stale(now_s + 2.5, stale_after_s=2.5)


async def test_worker_that_stops_beating_is_dropped(redis: Redis) -> None:
    async with following(redis) as view:
        registration = await Registration(redis, worker_record(), ttl_s=TTL_S).__aenter__()
        await eventually(lambda: ids(view) == ["decode-0"])

        # As if killed: the beat ends and nobody removes the lease.
        await registration._stack.aclose()

        await eventually(lambda: ids(view) == [])
        assert await redis.exists(keys.lease("decode-0")) == 0


async def test_takeover_replaces_the_old_incarnation(redis: Redis) -> None:
    older = Registration(redis, worker_record(), ttl_s=TTL_S)
    newer = Registration(redis, worker_record(incarnation="a2"), ttl_s=TTL_S)
    async with older, following(redis) as view, newer:
        await eventually(lambda: _incarnation(view) == "a2")
        await eventually(lambda: older.is_lost)
        assert ids(view) == ["decode-0"]


async def test_malformed_entries_are_counted_and_skipped(redis: Redis) -> None:
    async with Registration(redis, worker_record()), following(redis) as view:
        await redis.zadd(keys.leases(), {b"bad-\xff": 1e15, b"bad-1": 1e15})
        await redis.set(keys.record("bad-1"), b"{not json")
        await redis.xadd(keys.fleet_events(), {"stats": b"\xff", "joined": b"[]", "song": b""})

        await eventually(lambda: view.malformed >= 4)
        assert ids(view) == ["decode-0"]
        assert view.is_fresh


async def test_view_outlives_redis_and_converges_when_it_is_back_empty(
    redis_server: RedisServer, redis: Redis
) -> None:
    stays = Registration(redis, worker_record(), ttl_s=TTL_S)
    goes = Registration(redis, worker_record("decode-1", "b1"), ttl_s=TTL_S)
    async with stays, following(redis, lease_ttl_s=2) as view:
        async with goes:
            await eventually(lambda: ids(view) == ["decode-0", "decode-1"])
            seen = asyncio.create_task(_all_seen(view))
            redis_server.stop()
            await eventually(lambda: not view.connected)
            assert ids(view) == ["decode-0", "decode-1"]
            assert not view.is_fresh
        # decode-1 went while nobody could be told.
        redis_server.start()

        await eventually(lambda: ids(view) == ["decode-0"])
        assert view.is_fresh
        seen.cancel()
        assert all("decode-0" in them for them in await seen)


async def test_flushed_redis_does_not_empty_the_view(redis: Redis) -> None:
    async with Registration(redis, worker_record(), ttl_s=TTL_S), following(redis, 2) as view:
        generation = view.generation
        await redis.flushall()

        await eventually(lambda: _is_present(redis, keys.record("decode-0")))
        await eventually(lambda: view.is_fresh)
        assert view.generation == generation


async def test_unreachable_registry_is_named(redis_server: RedisServer) -> None:
    redis_server.stop()
    client = connect(redis_server.url)
    view = FleetView(client)
    async with running(view.run()):
        with pytest.raises(StartupError, match="registry could not be read"):
            await view.wait_synced(timeout_s=0.05)
        assert view.age_s == math.inf
    await client.aclose()


def test_stats_of_another_incarnation_are_ignored() -> None:
    members = Members()
    members.join(worker_record())

    members.report(StatsReport("decode-0", "a2", worker_stats(10.0)), taken_at_s=1.0)

    [view] = members
    assert view.stats is None
    assert view.age_s(5.0) == math.inf


def test_older_stats_do_not_replace_newer_ones() -> None:
    members = Members()
    members.join(worker_record())

    members.report(StatsReport("decode-0", "a1", worker_stats(10.0, 1)), taken_at_s=1.0)
    members.report(StatsReport("decode-0", "a1", worker_stats(9.0, 2)), taken_at_s=0.0)

    [view] = members.of_role(WorkerRole.DECODE)
    assert view.stats == worker_stats(10.0, 1)


def test_role_stays_in_order_while_figures_and_members_come() -> None:
    members = Members()
    for name in ("d2", "d0"):
        members.join(replace(worker_record(), worker_id=name, incarnation=name))
    assert [it.record.worker_id for it in members.of_role(WorkerRole.DECODE)] == ["d0", "d2"]

    members.report(StatsReport("d2", "d2", worker_stats(10.0, 1)), taken_at_s=1.0)
    members.join(replace(worker_record(), worker_id="d1", incarnation="d1"))
    members.report(StatsReport("d2", "d2", worker_stats(11.0, 2)), taken_at_s=2.0)

    views = members.of_role(WorkerRole.DECODE)
    assert [it.record.worker_id for it in views] == ["d0", "d1", "d2"]
    assert [it.stats for it in views] == [None, None, worker_stats(11.0, 2)]


def test_goodbye_of_an_older_incarnation_changes_nothing() -> None:
    members = Members()
    members.join(worker_record())
    members.join(replace(worker_record(), incarnation="a2"))

    members.leave_incarnation("a1", "late")

    assert [view.record.incarnation for view in members] == ["a2"]


async def _all_seen(view: FleetView) -> list[list[str]]:
    """Returns every state of the fleet until cancelled."""
    seen = [ids(view)]
    try:
        while True:
            await view.wait_change(view.generation)
            seen.append(ids(view))
    except asyncio.CancelledError:
        return seen


def _queued(view: FleetView) -> int | None:
    worker = view.worker("decode-0")
    return worker.stats.queued_requests if worker and worker.stats else None


def _incarnation(view: FleetView) -> str | None:
    worker = view.worker("decode-0")
    return worker.record.incarnation if worker else None


async def _is_present(redis: Redis, key: str) -> bool:
    return bool(await redis.exists(key))
