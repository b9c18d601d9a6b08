"""Traffic is recorded while somebody asks for it, in Mooncake's schema and without content."""

import asyncio
import io
import json
from pathlib import Path

from redis.asyncio import Redis

from baton.state import keys
from baton.state.background import running
from baton.state.finished import FinishedLog, FinishedRequest, coarse
from baton.state.recorder import TraceWriter, record
from sim.traces.mooncake import MooncakeTrace
from tests.support.waiting import eventually


def test_one_hash_stands_for_512_tokens() -> None:
    chain = list(range(100))
    assert coarse(chain, 16) == [31, 63, 95]
    assert coarse(chain, 512) == chain
    assert coarse(chain, 48) == ()
    assert coarse(chain, 0) == ()


def test_lines_stand_in_the_order_of_arrival_with_small_ids() -> None:
    out = io.StringIO()
    writer = TraceWriter(out, window_s=60.0)
    writer.take(FinishedRequest(1002.5, 1100, 7, (8888, 9999)))
    writer.take(FinishedRequest(1000.0, 512, 3, (8888,)))
    writer.write(now_s=1061.0)
    assert writer.written == 1
    writer.write(float("inf"))
    first, second = map(json.loads, out.getvalue().splitlines())
    assert first == {
        "timestamp": 0,
        "input_length": 512,
        "output_length": 3,
        "hash_ids": [0],
    }
    assert second == {
        "timestamp": 2500,
        "input_length": 1100,
        "output_length": 7,
        "hash_ids": [0, 1, 2],
    }


async def test_routers_tell_only_while_somebody_records(redis: Redis, tmp_path: Path) -> None:
    path, log, stop = tmp_path / "traffic.jsonl", FinishedLog(redis), asyncio.Event()
    with path.open("w") as out:
        writer = TraceWriter(out)
        log.add(FinishedRequest(1.0, 10, 1))
        async with running(log.run()), asyncio.TaskGroup() as tasks:
            tasks.create_task(record(redis, writer, stop.is_set))
            await eventually(lambda: log.is_wanted)
            for number in range(5):
                log.add(FinishedRequest(2000.0 + 0.25 * number, 600, 4, (77,)))
            await eventually(lambda: writer._taken == 5)
            stop.set()
        assert not await redis.exists(keys.recording())
    requests = list(MooncakeTrace(path).requests(seed=1))
    assert [it.arrival_s for it in requests] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert {it.hashes for it in requests} == {(0,)}
    assert {it.output_tokens for it in requests} == {4}
