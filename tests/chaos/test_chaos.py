"""The tools of the chaos suite do what they say, and a short campaign holds its invariants."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.chaos.campaign import run_campaign
from tests.chaos.observer import CpuTime, starved_share
from tests.chaos.proxy import FaultyProxy, Network
from tests.chaos.questions import make_questions
from tests.chaos.report import Report, Round, append_round, read_rounds
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


def test_a_campaign_goes_on_where_its_file_ends(tmp_path: Path) -> None:
    kept = tmp_path / "rounds.jsonl"
    assert read_rounds(kept) == []
    done = Round(
        *(3, 0, "ab12", ("kill -9", "SIGSTOP"), ("redis", "decode-0")),
        *({"right": 7, "lost": 1}, {"UNAVAILABLE": 2}, 0.7, 5.1),
        *({"blocks": 2, "permits": 0, "credits": 0}, ("still held",)),
    )
    append_round(kept, done)
    append_round(kept, done)
    assert read_rounds(kept) == [done, done]
    figures = Report(read_rounds(kept)).figures()
    assert figures["rounds"] == 2
    assert figures["faults"] == 4
    assert figures["requests"] == 16
    assert figures["lost_requests"] == 2
    assert figures["leaked_blocks"] == 4


def test_processes_that_waited_for_a_core_were_starved() -> None:
    before = {1: CpuTime(1.0, 1.0), 2: CpuTime(5.0, 5.0)}
    after = {1: CpuTime(2.0, 4.0), 3: CpuTime(9.0, 0.0)}
    assert starved_share(before, after) == 0.75
    assert starved_share({}, after) == 0.0


@pytest.mark.e2e
@pytest.mark.timeout(300)
async def test_a_short_campaign_holds_its_invariants(tmp_path: Path) -> None:
    report = Report(
        [it async for it in run_campaign([0], 3, make_questions(3, tmp_path), tmp_path)]
    )
    assert report.figures()["requests"]
    assert not report.broken()
