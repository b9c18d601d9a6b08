"""A fleet of simulated workers is a real one: gRPC, Redis, pairs, transfers across workers."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from baton.engine.simulated.tokens import answer
from baton.rpc.link import LinkPool
from baton.rpc.links import DECODE_LINK
from baton.state.background import running
from baton.state.connect import connect
from baton.state.fleet import FleetView
from baton.state.index_reader import IndexReader
from baton.state.members import WorkerView
from baton.state.prefix_index import PrefixIndex
from baton.state.records import WorkerRole
from baton.v1 import decode_link_pb2, types_pb2
from bench.fleet import Pace, running_fleet
from bench.workers import FleetSize
from tests.support.redis import running_redis
from tests.support.waiting import eventually
from tests.support.worker_fleet import Answer, read

PROMPT = list(range(1, 600))
INSTANT = Pace(step_s=0.0, prefill_token_s=0.0, transfer_s=0.0)


@pytest.fixture
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@asynccontextmanager
async def watching(redis_url: str) -> AsyncIterator[tuple[FleetView, PrefixIndex]]:
    redis = connect(redis_url)
    fleet, index = FleetView(redis), PrefixIndex()
    async with running(fleet.run()), running(IndexReader(redis, fleet, index).run()):
        yield fleet, index
    await redis.aclose()


async def ask(decode: WorkerView, prefill: WorkerView, tokens: int) -> Answer:
    candidate = decode_link_pb2.PrefillCandidate(
        worker_id=prefill.record.worker_id,
        incarnation=prefill.record.incarnation,
        address=prefill.record.address,
    )
    start = decode_link_pb2.DecodeStart(
        request_id="r",
        input_ids=PROMPT,
        sampling_params=types_pb2.SamplingParams(max_tokens=tokens, temperature=0.0),
        prefill_candidates=[candidate],
    )
    links = LinkPool(DECODE_LINK)
    command = decode_link_pb2.DecodeCommand(start=start)
    try:
        return await read(links.link(decode.record.address).open(command, timeout_s=20.0))
    finally:
        await links.close()


@pytest.mark.parametrize("eager_pairs", [0, 1024])
async def test_prompt_goes_from_worker_to_worker_and_into_the_index(
    redis_url: str, eager_pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both where pairs are made at the start and where the first request makes them."""
    monkeypatch.setattr("bench.fleet.EAGER_PAIRS_UP_TO", eager_pairs)
    size = FleetSize(1, 2)
    async with (
        running_fleet(redis_url, size, INSTANT, "baton-tiny", 64) as engines,
        watching(redis_url) as (fleet, index),
    ):
        await eventually(lambda: len(fleet.workers(WorkerRole.DECODE)) == size.decode)
        prefill = fleet.workers(WorkerRole.PREFILL)[0]
        for decode in fleet.workers(WorkerRole.DECODE):
            got = await ask(decode, prefill, 20)
            assert got.tokens == answer(PROMPT, 20, 4096, frozenset({0}))
            assert got.prefilled.mode == types_pb2.PREFILL_MODE_REMOTE
        stats = [engine.stats() for engine in engines]
        assert sum(it.kv_blocks_owned + it.kv_leases for it in stats) == 0
        hashes = list(engines[0].cached_hashes())
        holders = 1 + size.decode
        await eventually(lambda: len(index.match(hashes[:1], 0.0)) == holders)
