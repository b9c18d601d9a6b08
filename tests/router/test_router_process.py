"""The router and admission as processes: one clear line when they cannot start, a clean end."""

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process

import pytest

from baton.config import Config
from baton.errors import StartupError
from baton.ports import free_port
from baton.rpc.server import Listening
from services.router.app import running_router
from tests.support.control_plane import control_plane
from tests.support.mesh import greedy
from tests.support.waiting import eventually

SERVICES = ["services.router.main", "services.admission.main"]


async def start(module: str, redis_url: str, *arguments: str) -> Process:
    env = {**os.environ, "REDIS_URL": redis_url}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, env=env, stdout=PIPE, stderr=PIPE
    )


async def refusal_of(process: Process) -> str:
    """Returns what a process that must not start printed; asserts its exit code."""
    _, errors = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 2
    assert b"Traceback" not in errors
    # Loggers, gRPC's own among them, may have written before.
    line = errors.decode().splitlines()[-1]
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("module", SERVICES)
async def test_without_redis_it_refuses_to_start(module: str) -> None:
    url = f"redis://127.0.0.1:{free_port('127.0.0.1')}/0"
    line = await refusal_of(await start(module, url, "--port", "0"))
    assert url in line
    assert "REDIS_URL" in line


async def test_taken_port_and_bad_settings_are_told_in_one_line(redis_url: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        line = await refusal_of(await start(SERVICES[0], redis_url, "--port", port))
    assert port in line
    line = await refusal_of(await start(SERVICES[0], ""))
    assert "Redis" in line


@pytest.mark.parametrize("module", SERVICES)
async def test_signal_ends_it_well(module: str, redis_url: str) -> None:
    process = await start(module, redis_url, "--port", "0", "--name", "it")
    assert process.stderr is not None
    async with asyncio.timeout(30):
        while b"listening address=127.0.0.1:" not in await process.stderr.readline():
            pass
        process.send_signal(signal.SIGTERM)
        await process.communicate()
    assert process.returncode == 0


async def test_routers_share_a_port_only_when_told_to(redis_url: str) -> None:
    async with control_plane(redis_url) as plane:
        worker = await plane.decode("decode-0")
        port = free_port("127.0.0.1")
        both = [Listening("127.0.0.1", port, f"router-{n}", shares_port=True) for n in (0, 1)]
        for listening in both:
            app = running_router(Config(), listening, plane.model, plane.redis, plane.telemetry)
            router = await plane.stack.enter_async_context(app)
        await eventually(lambda: bool(router.fleet.worker("decode-0")))
        for _ in range(8):  # each client has a connection of its own
            client = await plane.client(router)
            answer = await client.generate(input_ids=[5], sampling_params=greedy(3))
            assert len(answer.output_ids) == 3
        assert len(worker.calls) == 8
        alone = Listening("127.0.0.1", port, "router-alone")
        app = running_router(Config(), alone, plane.model, plane.redis, plane.telemetry)
        with pytest.raises(StartupError, match="port"):
            await plane.stack.enter_async_context(app)
