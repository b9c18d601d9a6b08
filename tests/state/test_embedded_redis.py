"""The embedded server and the connection to it."""

import asyncio
import importlib.util
import sys
from pathlib import Path

import pytest
from redis.asyncio import Redis

from baton.errors import StartupError
from baton.state.connect import connect, ping_or_fail, without_password
from baton.state.embedded import start_embedded
from tests.support.redis import RedisServer
from tests.support.waiting import eventually


async def test_server_answers_and_stops(tmp_path: Path) -> None:
    server = start_embedded(tmp_path)
    client = connect(server.url)
    await ping_or_fail(client, server.url)

    server.stop()

    with pytest.raises(StartupError, match="does not answer"):
        await ping_or_fail(client, server.url)
    await client.aclose()


def test_taken_port_is_named(redis_server: RedisServer, tmp_path: Path) -> None:
    port = int(redis_server.url.rpartition(":")[2].partition("/")[0])

    with pytest.raises(StartupError, match=f"port {port} is taken"):
        start_embedded(tmp_path / "second", port)


def test_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(StartupError, match="install the extra `local`"):
        start_embedded(tmp_path)


async def test_server_dies_with_its_parent(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux tells a child of its parent's death")
    program = (
        "import pathlib, sys, time\n"
        "from baton.state.embedded import start_embedded\n"
        "server = start_embedded(pathlib.Path(sys.argv[1]))\n"
        "print(server.url, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    url = (await parent.stdout.readline()).decode().strip()
    parent.kill()
    await parent.wait()

    async def is_gone() -> bool:
        client = connect(url)
        try:
            await ping_or_fail(client, url, timeout_s=1)
        except StartupError:
            return True
        finally:
            await client.aclose()
        return False

    await eventually(is_gone)


async def test_missing_redis_is_reported_without_the_password() -> None:
    url = "redis://user:secret@127.0.0.1:1/0"
    client = connect(url)

    with pytest.raises(StartupError, match=r"redis://127\.0\.0\.1:1/0 does not") as caught:
        await ping_or_fail(client, url)

    assert "secret" not in str(caught.value)
    await client.aclose()


async def test_cancellation_in_any_step_of_a_call_ends_its_loop(redis: Redis) -> None:
    async def ping_for_ever() -> None:
        while True:
            await redis.ping()

    for steps in range(60):
        task = asyncio.create_task(ping_for_ever())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=1)
        assert done, f"cancelled after {steps} steps of the loop and still running"


def test_url_that_is_none_is_refused() -> None:
    with pytest.raises(StartupError, match="set REDIS_URL"):
        connect("http://localhost:6379")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:pw@host:6379/1?password=pw", "redis://host:6379/1"),
        ("rediss://u:p@host/0", "rediss://host/0"),
        ("redis://host:6379", "redis://host:6379"),
    ],
)
def test_credentials_are_not_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown
