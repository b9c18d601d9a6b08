"""Routers know of each other's dispatches, and a dead router's are void within two seconds."""

import asyncio

import pytest

from baton.state.background import running
from baton.state.connect import connect
from baton.state.shared_credits import RECENT_S, REPORT_LIFE_S, CreditExchange, Dispatch
from tests.support.redis import RedisServer
from tests.support.waiting import eventually


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Router:
    """A router's side of the exchange: what it dispatched, and what it knows of others."""

    def __init__(self, url: str, name: str, clock: Clock, wall_offset_s: float = 0.0) -> None:
        self.dispatches: list[Dispatch] = []
        self.redis = connect(url)
        self.exchange = CreditExchange(
            self.redis,
            name,
            lambda since_s: [it for it in self.dispatches if it.sent_at_s >= since_s],
            clock,
            lambda: clock() + wall_offset_s,
        )


async def test_dispatch_of_one_router_is_seen_by_another(redis_server: RedisServer) -> None:
    clock = Clock()
    first, second = (
        Router(redis_server.url, "a", clock, 5000.0),
        Router(redis_server.url, "b", clock, 5000.0),
    )
    async with (
        first.redis,
        second.redis,
        running(first.exchange.run()),
        running(second.exchange.run()),
    ):
        first.dispatches = [Dispatch("w1", 100.0, 300), Dispatch("w1", 99.9, 50)]
        await eventually(lambda: second.exchange.unseen("w1", 99.0) == (2, 350))
        assert second.exchange.unseen("w1", 99.95) == (1, 300)
        assert second.exchange.unseen("w2", 0.0) == (0, 0)
        assert first.exchange.unseen("w1", 0.0) == (0, 0)
        first.dispatches = []
        await eventually(lambda: second.exchange.unseen("w1", 0.0) == (0, 0))


async def test_dead_routers_credits_are_void_within_two_seconds(redis_server: RedisServer) -> None:
    assert REPORT_LIFE_S + RECENT_S <= 2.0
    clock = Clock()
    dead, alive = Router(redis_server.url, "a", clock), Router(redis_server.url, "b", clock)
    async with dead.redis, alive.redis, running(alive.exchange.run()):
        dead.dispatches = [Dispatch("w1", 100.0, 300)]

        async def is_seen() -> bool:
            await dead.exchange.publish_once()  # until the reader listens
            return alive.exchange.unseen("w1", 0.0) == (1, 300)

        await eventually(is_seen)
        clock.now_s += REPORT_LIFE_S + 0.01
        assert alive.exchange.unseen("w1", 0.0) == (0, 0)


async def test_quiet_router_tells_once_that_nothing_is_left(redis_server: RedisServer) -> None:
    router = Router(redis_server.url, "a", Clock())
    async with router.redis as redis:
        before = await redis.xlen("baton:v1:credits")
        await router.exchange.publish_once()
        router.dispatches = [Dispatch("w1", 100.0, 1)]
        await router.exchange.publish_once()
        router.dispatches = []
        await router.exchange.publish_once()
        await router.exchange.publish_once()
        assert await redis.xlen("baton:v1:credits") == before + 2
        assert 0 < await redis.ttl("baton:v1:credits") <= 10


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b'{"router":1,"taken_at_s":"x"}'])
async def test_unreadable_report_is_skipped_and_counted(data: bytes) -> None:
    router = Router("redis://127.0.0.1:1/0", "a", Clock())
    async with router.redis:
        router.exchange.take(data)
    assert router.exchange.malformed == 1


async def test_exchange_outlives_an_unreachable_redis() -> None:
    router = Router("redis://127.0.0.1:1/0", "a", Clock())
    router.dispatches = [Dispatch("w1", 100.0, 1)]
    async with router.redis, running(router.exchange.run()):
        await asyncio.sleep(0)
        assert router.exchange.unseen("w1", 0.0) == (0, 0)
