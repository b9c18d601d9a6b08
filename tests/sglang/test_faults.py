"""Engines and workers that die while they serve: typed errors, nothing leaked, back again."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from baton.errors import BatonError, UnavailableError
from tests.sglang.conftest import START_TIMEOUT_S, Fleet, Worker, prompt
from tests.support.reference import Reference
from tests.support.waiting import eventually
from tests.support.worker_fleet import Answer, read, take

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

NOTICE_S = 10.0
"""A lost engine is noticed much faster; two busy cores are slow."""


async def test_lost_prefill_engine_is_a_typed_error_and_comes_back(
    fleet: Fleet, reference: Reference
) -> None:
    prefill = fleet.workers["prefill-0"]
    handed_over = fleet.ask(prompt(60, seed=305), max_tokens=40)
    begun = await _first_tokens(handed_over, 1)
    calls = [fleet.ask(prompt(900, seed=300 + n), max_tokens=4) for n in range(4)]
    os.kill(prefill.engine_pid(), signal.SIGKILL)

    async with asyncio.timeout(NOTICE_S):
        outcomes = await asyncio.gather(*(read(call) for call in calls), return_exceptions=True)

    # What got its first token before the end was answered; all else says what happened.
    for outcome in outcomes:
        assert isinstance(outcome, Answer | UnavailableError), outcome
    assert any(isinstance(outcome, UnavailableError) for outcome in outcomes)
    assert not await _is_serving(prefill, "baton.v1.PrefillService")
    await _read_on(handed_over, begun)
    assert begun.tokens == reference.greedy(prompt(60, seed=305), 40)
    await eventually(fleet.workers["decode-0"].is_clean, timeout_s=45)
    await eventually(lambda: _serves(fleet), timeout_s=START_TIMEOUT_S)
    answer = await read(fleet.ask(prompt(50, seed=310), max_tokens=6))
    assert answer.tokens == reference.greedy(prompt(50, seed=310), 6)
    assert await _is_serving(prefill, "baton.v1.PrefillService")


async def test_lost_decode_engine_ends_all_legs_with_a_typed_error(fleet: Fleet) -> None:
    decode = fleet.workers["decode-0"]
    streaming = fleet.ask(prompt(60, seed=320), max_tokens=2000)
    begun = await _first_tokens(streaming, 3)
    waiting = [fleet.ask(prompt(900, seed=321 + n), max_tokens=2000) for n in range(4)]
    os.kill(decode.engine_pid(), signal.SIGKILL)

    async with asyncio.timeout(NOTICE_S):
        outcomes = await asyncio.gather(
            _read_on(streaming, begun), *(read(call) for call in waiting), return_exceptions=True
        )

    for outcome in outcomes:
        assert isinstance(outcome, UnavailableError), outcome
    assert isinstance(outcomes[0], UnavailableError)
    assert outcomes[0].reason == "ENGINE_DOWN"
    await eventually(fleet.workers["prefill-0"].is_clean, timeout_s=45)
    await eventually(lambda: _serves(fleet), timeout_s=START_TIMEOUT_S)
    await fleet.settle()


async def test_worker_that_drains_finishes_its_streams_and_leaves(fleet: Fleet) -> None:
    decode = fleet.workers.pop("decode-0")
    fleet.workers["leaving"] = decode
    family = decode.family
    call = fleet.ask(prompt(60, seed=330), max_tokens=30, decode="leaving")
    answer = await _first_tokens(call, 1)
    decode.process.send_signal(signal.SIGTERM)
    await _read_on(call, answer)

    assert len(answer.tokens) == 30
    assert await asyncio.wait_for(decode.process.wait(), 60) == 0
    del fleet.workers["leaving"]
    await eventually(lambda: not any(_runs(pid) for pid in family), timeout_s=20)


async def _first_tokens(call: Any, count: int) -> Answer:
    """Reads until a request has that many tokens."""
    answer = Answer()
    while len(answer.tokens) < count:
        take(answer, await anext(call))
    return answer


async def _read_on(call: Any, answer: Answer) -> None:
    async for event in call:
        take(answer, event)


def _runs(pid: int) -> bool:
    """Tells whether a process is there and more than an exit code that nobody asked for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


async def _serves(fleet: Fleet) -> bool:
    await asyncio.sleep(0.5)  # an engine takes a minute to start
    try:
        async with asyncio.timeout(20):
            answer = await read(fleet.ask(prompt(33), max_tokens=2))
    except (BatonError, TimeoutError):
        return False
    return len(answer.tokens) == 2


async def _is_serving(worker: Worker, service: str) -> bool:
    async with grpc.aio.insecure_channel(worker.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
