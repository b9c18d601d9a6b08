"""From a worker's cache through Redis into a router's index."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from redis.asyncio import Redis

from baton.state import keys
from baton.state.background import running
from baton.state.fleet import FleetView
from baton.state.index_reader import IndexReader
from baton.state.kv_events import BODY_FIELD, KvEventPublisher
from baton.state.kv_wire import CacheChange, ChangeKind, set_members
from baton.state.prefix_index import PrefixIndex
from baton.state.registry import Registration
from tests.support.fleet import SetCache, worker_record
from tests.support.redis import RedisServer
from tests.support.waiting import eventually

TTL_S = 0.6
CHAIN = tuple(range(2**63, 2**63 + 8))


@dataclass
class Worker:
    cache: SetCache
    publisher: KvEventPublisher
    registration: Registration


@dataclass
class Router:
    index: PrefixIndex
    reader: IndexReader
    fleet: FleetView

    def depth(self, incarnation: str = "a1") -> int:
        return self.index.match(CHAIN, 0.0).get(incarnation, 0)


@asynccontextmanager
async def publishing(
    redis: Redis, incarnation: str = "a1", worker_id: str = "decode-0", max_pending: int = 1000
) -> AsyncIterator[Worker]:
    """A registered worker whose cache changes are published at every `flush`."""
    cache = SetCache()
    publisher = KvEventPublisher(redis, incarnation, cache, max_pending_blocks=max_pending)
    record = worker_record(worker_id, incarnation)
    async with Registration(redis, record, ttl_s=TTL_S) as registration:
        yield Worker(cache, publisher, registration)


@asynccontextmanager
async def routing(redis: Redis, lease_ttl_s: float = 2.0) -> AsyncIterator[Router]:
    fleet = FleetView(redis, lease_ttl_s=lease_ttl_s, scan_interval_s=0.1)
    index = PrefixIndex()
    reader = IndexReader(redis, fleet, index)
    async with running(fleet.run()), running(reader.run()):
        await fleet.wait_synced()
        await eventually(lambda: reader.is_synced)
        yield Router(index, reader, fleet)


async def test_index_follows_stored_removed_and_cleared(redis: Redis) -> None:
    async with publishing(redis) as worker, routing(redis) as router:
        worker.cache.store(*CHAIN)
        await worker.publisher.flush()
        await eventually(lambda: router.depth() == 8)

        worker.cache.remove(*CHAIN[5:])
        await worker.publisher.flush()
        await eventually(lambda: router.depth() == 5)

        worker.cache.clear()
        worker.cache.store(CHAIN[0])
        await worker.publisher.flush()
        await eventually(lambda: router.depth() == 1)


async def test_late_reader_serves_warm_at_once(redis: Redis) -> None:
    async with publishing(redis) as worker:
        worker.cache.store(*CHAIN)
        await worker.publisher.flush()
        worker.cache.remove(CHAIN[7])
        await worker.publisher.flush()

        async with routing(redis) as router:
            assert router.depth() == 7
            assert router.reader.resyncs == 0

            worker.cache.store(CHAIN[7])
            await worker.publisher.flush()
            await eventually(lambda: router.depth() == 8)


async def test_gap_rereads_that_worker_only(redis: Redis) -> None:
    other = publishing(redis, "b1", "decode-1")
    async with publishing(redis) as worker, other as untouched, routing(redis) as router:
        for it in (worker, untouched):
            it.cache.store(*CHAIN[:4])
            await it.publisher.flush()
        await eventually(lambda: router.depth() == router.depth("b1") == 4)
        # Were its set read again, b1 would come out empty.
        await redis.delete(keys.kv_blocks("b1"))
        before = router.reader.resyncs

        # As if the next entry had been trimmed away before the reader came to it.
        await redis.sadd(keys.kv_blocks("a1"), *set_members(CHAIN[4:7]))
        worker.publisher.seq += 1
        await redis.set(keys.kv_cursor("a1"), worker.publisher.seq)
        worker.cache.store(CHAIN[7])
        await worker.publisher.flush()

        await eventually(lambda: router.depth() == 8)
        assert router.reader.resyncs == before + 1
        assert router.depth("b1") == 4


async def test_new_incarnation_drops_what_the_old_one_held(redis: Redis) -> None:
    async with publishing(redis) as old, routing(redis) as router:
        old.cache.store(*CHAIN)
        await old.publisher.flush()
        await eventually(lambda: router.depth() == 8)

        async with publishing(redis, "a2") as new:
            new.cache.store(*CHAIN[:2])
            await new.publisher.flush()

            await eventually(lambda: router.index.match(CHAIN, 0.0) == {"a2": 2})


async def test_worker_that_left_is_dropped(redis: Redis) -> None:
    async with routing(redis) as router:
        async with publishing(redis) as worker:
            worker.cache.store(*CHAIN)
            await worker.publisher.flush()
            await eventually(lambda: router.depth() == 8)

        await eventually(lambda: router.index.match(CHAIN, 0.0) == {})
        assert "a1" not in router.index


async def test_index_outlives_redis_and_converges_when_it_is_back_empty(
    redis_server: RedisServer, redis: Redis
) -> None:
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(publishing(redis))
        router = await stack.enter_async_context(routing(redis))
        await stack.enter_async_context(running(worker.publisher.run()))
        worker.cache.store(*CHAIN[:6])
        await eventually(lambda: router.depth() == 6)

        redis_server.stop()
        worker.cache.remove(CHAIN[5])
        await eventually(lambda: not (worker.publisher.connected or router.reader.connected))
        assert router.depth() == 6

        redis_server.start()
        await eventually(lambda: router.depth() == 5)
        worker.cache.store(*CHAIN[5:])
        await eventually(lambda: router.depth() == 8)
        assert await redis.scard(keys.kv_blocks("a1")) == 8


async def test_idle_publisher_notices_lost_data(redis: Redis) -> None:
    async with publishing(redis) as worker:
        worker.cache.store(*CHAIN)
        await worker.publisher.flush()
        async with running(worker.publisher.run()):
            await redis.flushall()

            await eventually(lambda: _is_size(redis, keys.kv_blocks("a1"), 8))
            assert worker.publisher.resyncs == 2


async def test_overflow_while_redis_is_away_publishes_the_whole_set(
    redis_server: RedisServer, redis: Redis
) -> None:
    async with publishing(redis, max_pending=4) as worker:
        publisher = worker.publisher
        await publisher.flush()
        redis_server.stop()
        async with running(publisher.run()):
            worker.cache.store(*CHAIN)
            await eventually(lambda: not publisher.connected)
            redis_server.start()
            await eventually(lambda: publisher.connected)

        assert await redis.scard(keys.kv_blocks("a1")) == 8


async def test_entry_whose_answer_was_lost_counts_once(redis: Redis) -> None:
    async with publishing(redis) as worker:
        publisher = worker.publisher
        await publisher.flush()
        worker.cache.store(*CHAIN)
        await publisher.flush()
        # The same entry again, as after a connection that broke before the answer.
        publisher._sending = [CacheChange(ChangeKind.STORED, CHAIN)]
        await publisher.flush()

        assert await redis.xlen(keys.kv_events("a1")) == 2
        assert (publisher.seq, publisher.resyncs) == (2, 1)


async def test_foreign_entries_are_counted_and_healed(redis: Redis) -> None:
    async with publishing(redis) as worker, routing(redis) as router:
        worker.cache.store(*CHAIN[:4])
        await worker.publisher.flush()
        await eventually(lambda: router.depth() == 4)

        await redis.sadd(keys.kv_blocks("a1"), b"short")
        await redis.xadd(keys.kv_events("a1"), {BODY_FIELD: b"\xff"}, id="2-0")
        await eventually(lambda: router.reader.malformed > 0)
        worker.cache.store(*CHAIN[4:])
        await worker.publisher.flush()

        await eventually(lambda: router.depth() == 8)


async def test_broken_keys_of_one_worker_do_not_stop_the_others(redis: Redis) -> None:
    other = publishing(redis, "b1", "decode-1")
    async with publishing(redis) as worker, other as sound, routing(redis) as router:
        await redis.set(keys.kv_cursor("a1"), "one")
        sound.cache.store(*CHAIN)
        await sound.publisher.flush()

        await eventually(lambda: router.depth("b1") == 8)
        await eventually(lambda: router.reader.malformed > 0)
        worker.cache.store(*CHAIN)
        await worker.publisher.flush()
        await eventually(lambda: router.depth() == 8)


async def test_large_set_is_published_and_read_in_parts(redis: Redis) -> None:
    async with publishing(redis) as worker:
        worker.cache.store(*range(10_000))
        await worker.publisher.flush()

        async with routing(redis) as router:
            assert router.index.match(range(10_000), 0.0) == {"a1": 10_000}


async def test_everything_written_has_a_life_time(redis: Redis) -> None:
    async with publishing(redis) as worker:
        worker.cache.store(*CHAIN)
        await worker.publisher.flush()
        worker.cache.remove(CHAIN[0])
        await worker.publisher.flush()

        for key in await redis.keys("*kv*"):
            assert await redis.pttl(key) > 0, key
        await worker.publisher.remove()
        assert await redis.keys("*kv*") == []


async def _is_size(redis: Redis, key: str, size: int) -> bool:
    return bool(await redis.scard(key) == size)
