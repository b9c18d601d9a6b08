"""The health probe against a real server."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from baton.rpc import probe
from baton.rpc.server import ServiceServer

SERVICE = "baton.v1.RouterService"


@pytest.fixture
async def server() -> AsyncIterator[ServiceServer]:
    started = ServiceServer("127.0.0.1", 0, [SERVICE])
    await started.start()
    yield started
    await started.drain(0)


async def test_a_service_is_serving_once_it_is_ready(server: ServiceServer) -> None:
    address = f"127.0.0.1:{server.port}"
    assert await asyncio.to_thread(probe.check, address) == ""
    assert await asyncio.to_thread(probe.check, address, SERVICE) == "NOT_SERVING"
    await server.set_ready(True)
    assert await asyncio.to_thread(probe.check, address, SERVICE) == ""


async def test_an_unknown_service_is_a_problem(server: ServiceServer) -> None:
    problem = await asyncio.to_thread(probe.check, f"127.0.0.1:{server.port}", "baton.v1.Nobody")
    assert problem.startswith("NOT_FOUND")


async def test_exit_code_and_message_tell_the_answer(
    server: ServiceServer, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"127.0.0.1:{server.port}"
    assert await asyncio.to_thread(probe.main, [address]) == 0
    assert capsys.readouterr() == ("", "")
    assert await asyncio.to_thread(probe.main, [address, SERVICE]) == 1
    assert capsys.readouterr().err == f"{address} {SERVICE}: NOT_SERVING\n"


def test_an_address_where_nobody_listens_is_a_problem(unused_port: int) -> None:
    assert probe.check(f"127.0.0.1:{unused_port}").startswith("UNAVAILABLE")


@pytest.fixture
async def unused_port() -> int:
    gone = ServiceServer("127.0.0.1", 0, [])
    await gone.start()
    await gone.drain(0)
    return gone.port
