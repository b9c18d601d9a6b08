"""One Redis for the autoscaler's tests."""

from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis

from baton.state.connect import connect
from tests.support.redis import running_redis


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = connect(redis_url)
    await client.flushall()
    yield client
    await client.aclose()
