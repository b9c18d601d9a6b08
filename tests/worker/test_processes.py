"""The two worker commands as processes, over NIXL."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence

import pytest
from redis.asyncio import Redis

from baton.rpc.link import LinkPool
from baton.rpc.links import DECODE_LINK
from baton.state import keys
from baton.state.records import decode_record
from baton.v1 import decode_link_pb2, types_pb2
from tests.support.waiting import eventually
from tests.support.worker_fleet import Answer, read

PROMPT = [5 + 7 * n % 900 for n in range(400)]

Process = asyncio.subprocess.Process


async def start(role: str, redis_url: str, *arguments: str) -> Process:
    environ = {**os.environ, "REDIS_URL": redis_url, "OMP_NUM_THREADS": "1"}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", f"services.{role}.main", *arguments),
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as redis:
        await redis.flushall()
        yield redis


@pytest.mark.parametrize(
    ("arguments", "environ_url", "message"),
    [
        (("--port", "0"), "", "REDIS_URL"),
        (("--port", "0"), "redis://127.0.0.1:1/0", "127.0.0.1:1"),
        (("--config", "nowhere.yaml"), "redis://127.0.0.1:1/0", "nowhere.yaml"),
    ],
)
async def test_worker_that_cannot_start_says_why_in_one_line(
    arguments: Sequence[str], environ_url: str, message: str
) -> None:
    process = await start("prefill", environ_url, *arguments)
    _, stderr = await asyncio.wait_for(process.communicate(), 30)
    lines = [line for line in stderr.decode().splitlines() if line.startswith("error: ")]
    assert process.returncode == 2
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in stderr.decode()


@pytest.mark.e2e
async def test_two_processes_serve_together_and_stop_on_sigterm(
    redis_url: str, redis: Redis
) -> None:
    processes = [
        await start(role, redis_url, "--name", f"{role}-0") for role in ("prefill", "decode")
    ]
    try:
        await eventually(lambda: joined(redis, 2), timeout_s=60)
        answers = [await ask(redis, True), await ask(redis, False)]
        assert answers[0].prefilled.mode == types_pb2.PREFILL_MODE_REMOTE
        assert answers[0].prefilled.receipt.bytes > 0
        assert answers[0].tokens == answers[1].tokens
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        outputs = [await asyncio.wait_for(process.communicate(), 30) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert await redis.zcard(keys.leases()) == 0
    for _, stderr in outputs:
        assert b"Traceback" not in stderr, stderr.decode()


async def joined(redis: Redis, count: int) -> bool:
    return int(await redis.zcard(keys.leases())) == count


async def ask(redis: Redis, remote: bool) -> Answer:
    """Runs one request; another salt keeps the second from using the first one's cache."""
    decode = decode_record(await redis.get(keys.record("decode-0")))
    prefill = decode_record(await redis.get(keys.record("prefill-0")))
    candidate = decode_link_pb2.PrefillCandidate(
        worker_id=prefill.worker_id, incarnation=prefill.incarnation, address=prefill.address
    )
    start = decode_link_pb2.DecodeStart(
        request_id=f"remote-{remote}",
        input_ids=PROMPT,
        sampling_params=types_pb2.SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True),
        prefill_candidates=[candidate] if remote else [],
        cache_salt=str(remote),
    )
    links = LinkPool(DECODE_LINK)
    try:
        command = decode_link_pb2.DecodeCommand(start=start)
        return await read(links.link(decode.address).open(command, timeout_s=30))
    finally:
        await links.close()
