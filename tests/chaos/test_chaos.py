"""The tools of the chaos suite do what they say, and a short campaign holds its invariants."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.chaos.campaign import run_campaign
from tests.chaos.proxy import FaultyProxy, Network
from tests.chaos.questions import make_questions
from tests.support.waiting import eventually


@pytest.fixture
async def proxy() -> AsyncIterator[FaultyProxy]:
    """A proxy before a server that echoes."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1024):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    made = FaultyProxy(server.sockets[0].getsockname()[1])
    await made.start()
    yield made
    await made.stop()
    server.close()


async def test_a_silent_network_keeps_what_is_sent_until_it_is_good_again(
    proxy: FaultyProxy,
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    proxy.turn(Network.SILENT)
    writer.write(b"hello")
    answer = asyncio.create_task(reader.readexactly(5))
    await asyncio.sleep(0)
    assert not answer.done()
    proxy.turn(Network.GOOD)
    assert await answer == b"hello"
    writer.close()


async def test_a_cut_network_breaks_connections_and_refuses_new_ones(proxy: FaultyProxy) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"
    proxy.turn(Network.CUT)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    writer.close()

    async def is_refused() -> bool:
        again, unused = await asyncio.open_connection("127.0.0.1", proxy.port)
        try:
            return await again.read(1) == b""
        except ConnectionError:
            return True
        finally:
            unused.close()

    await eventually(is_refused)


@pytest.mark.e2e
@pytest.mark.timeout(300)
async def test_a_short_campaign_holds_its_invariants(tmp_path: Path) -> None:
    report = await run_campaign(1, 3, make_questions(3, tmp_path), tmp_path, print)
    assert report.tally.requests > 0
    assert report.is_clean, (report.problems, report.tally.details)
