"""The mesh on a Redis with TLS, a password and the least rights; others find it closed."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from redis.exceptions import NoPermissionError

from baton.errors import StartupError
from baton.models import DEFAULT_MODEL
from baton.state.connect import REDIS_ERRORS, connect, ping_or_fail, without_password
from services.router.model import load_served_model
from tests.support.control_plane import ControlPlane
from tests.support.mesh import greedy
from tests.support.tls_redis import PASSWORD, tls_redis


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    async with tls_redis(tmp_path) as secured:
        yield secured


async def test_services_work_with_the_rights_that_the_docs_give(
    url: str,
) -> None:
    async with AsyncExitStack() as stack:
        plane = ControlPlane(url, load_served_model(DEFAULT_MODEL), stack)
        stack.callback(plane.telemetry.shutdown)
        stack.push_async_callback(plane.redis.aclose)
        await plane.decode("decode-0")
        await plane.admission()
        router = await plane.router()
        client = await plane.client(router)
        answer = await client.generate(input_ids=[3, 4, 5], sampling_params=greedy(4))
    assert answer.placement.decode_worker_id == "decode-0"


async def test_the_user_reaches_nothing_beside_the_meshs_keys(url: str) -> None:
    redis = connect(url)
    for command in (("GET", "other"), ("FLUSHALL",), ("CONFIG", "GET", "*"), ("ACL", "LIST")):
        with pytest.raises(NoPermissionError):
            await redis.execute_command(*command)
    await redis.aclose()


@pytest.mark.parametrize("lacks", ["TLS", "certificate", "password"])
async def test_who_lacks_a_part_gets_no_answer(url: str, lacks: str) -> None:
    parts = urlsplit(url)
    address = f"{parts.hostname}:{parts.port}"
    authority = parts.query.split("&")[0]
    other = {
        "TLS": f"redis://{parts.username}:{parts.password}@{address}/0",
        "certificate": f"rediss://{parts.username}:{parts.password}@{address}/0?{authority}",
        "password": f"rediss://{address}/0?{parts.query}",
    }[lacks]
    redis = connect(other)
    with pytest.raises(REDIS_ERRORS):
        await redis.get("baton:v1:epoch")
    with pytest.raises(StartupError) as refused:
        await ping_or_fail(redis, other)
    await redis.aclose()
    assert PASSWORD not in str(refused.value)
    assert without_password(other) in str(refused.value)
