"""One Redis for the module; every control plane empties it first."""

from collections.abc import Iterator

import pytest

from tests.support.redis import running_redis


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server.url
