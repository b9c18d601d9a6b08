"""Workers on fake engines around one Redis."""

from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis

from tests.support.redis import running_redis
from tests.support.worker_fleet import WorkerFleet, running_fleet


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture
async def fleet(redis_url: str) -> AsyncIterator[WorkerFleet]:
    async with Redis.from_url(redis_url) as redis:
        await redis.flushall()
    async with running_fleet(redis_url) as fleet:
        yield fleet
