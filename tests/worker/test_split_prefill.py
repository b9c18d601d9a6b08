"""Remote and local prefill between workers with real gRPC, and every way it can fail."""

import asyncio
from typing import Any

import pytest

from baton.config import SplitPolicy
from baton.errors import BatonError, CancelledByPeerError, DeadlineError, OverloadedError
from baton.requests import EngineRequest, SamplingParams
from baton.v1 import types_pb2
from tests.support.fake_engine import FakeEngine, generated
from tests.support.waiting import eventually
from tests.support.worker_fleet import Answer, Worker, WorkerFleet, read, take

LONG = tuple(range(1, 34))
SHORT = tuple(range(100, 105))
SPLIT = SplitPolicy(prompt_length_threshold=8, prefill_queue_max=2)


@pytest.fixture
async def fleet(fleet: WorkerFleet) -> WorkerFleet:
    fleet.config = fleet.config.model_copy(update={"split_policy": SPLIT})
    return fleet


async def pair(fleet: WorkerFleet) -> tuple[Worker, Worker]:
    prefill = await fleet.prefill("p0", FakeEngine())
    decode = await fleet.decode("d0", FakeEngine())
    await eventually(lambda: connected(decode) == ["p0"])
    return prefill, decode


def connected(decode: Worker) -> list[str]:
    return decode.service.connected_prefill_workers()


def request_of(prompt: tuple[int, ...]) -> EngineRequest:
    return EngineRequest("direct", prompt, SamplingParams(temperature=0.0))


async def assert_nothing_left(*workers: Worker) -> None:
    for worker in workers:
        await eventually(worker.is_clean)


async def test_long_prompt_is_prefilled_remotely_and_answers_as_local(fleet: WorkerFleet) -> None:
    prefill, decode = await pair(fleet)
    answer = await read(fleet.ask(decode, LONG, [prefill.candidate()]))
    assert answer.tokens == generated(LONG, 8)
    ready = answer.prefilled
    assert (ready.mode, ready.reason) == (types_pb2.PREFILL_MODE_REMOTE, "LONG_PREFILL")
    assert ready.prefill_worker_id == "p0"
    assert ready.receipt.blocks == 9
    assert (ready.prefill_queue_s, ready.prefill_compute_s) == (0.001, 0.002)
    assert ready.decode_admit_s > 0
    assert ready.kv_transfer_s >= 0
    assert answer.finish_reason == types_pb2.FINISH_REASON_LENGTH
    await assert_nothing_left(prefill, decode)


async def test_short_prompt_is_prefilled_locally(fleet: WorkerFleet) -> None:
    prefill, decode = await pair(fleet)
    answer = await read(fleet.ask(decode, SHORT, [prefill.candidate()]))
    assert answer.tokens == generated(SHORT, 8)
    ready = answer.prefilled
    assert (ready.mode, ready.reason) == (types_pb2.PREFILL_MODE_LOCAL, "SHORT_PREFILL")
    assert ready.prefill_worker_id == "d0"
    assert ready.kv_transfer_s == 0
    await assert_nothing_left(prefill, decode)


async def test_own_cache_is_not_transferred_again(fleet: WorkerFleet) -> None:
    prefill, decode = await pair(fleet)
    await read(fleet.ask(decode, LONG, [prefill.candidate()]))
    longer = LONG + tuple(range(200, 230))
    answer = await read(fleet.ask(decode, longer, [prefill.candidate()]))
    assert answer.tokens == generated(longer, 8)
    assert answer.prefilled.local_cached_tokens == 32
    assert answer.prefilled.cached_tokens == 32
    assert answer.prefilled.receipt.blocks == 8
    await assert_nothing_left(prefill, decode)


async def test_declined_request_goes_to_the_next_candidate(fleet: WorkerFleet) -> None:
    first, decode = await pair(fleet)
    second = await fleet.prefill("p1", FakeEngine())
    first.engine.may_prefill.clear()
    other = await fleet.decode("d1", FakeEngine())
    held = [
        asyncio.create_task(read(fleet.ask(other, (*LONG, n), [first.candidate()])))
        for n in range(3)
    ]
    await eventually(lambda: first.engine.stats().queued_requests == 2)
    answer = await read(fleet.ask(decode, LONG, [first.candidate(), second.candidate()]))
    assert answer.prefilled.prefill_worker_id == "p1"
    assert list(answer.prefilled.failed_attempts) == ["p0: PREFILL_QUEUE_FULL"]
    assert answer.tokens == generated(LONG, 8)
    first.engine.may_prefill.set()
    await asyncio.gather(*held)
    await assert_nothing_left(first, second, decode, other)


async def test_everybody_declining_is_load_and_not_a_fault(fleet: WorkerFleet) -> None:
    prefill, decode = await pair(fleet)
    prefill.engine.may_prefill.clear()
    other = await fleet.decode("d1", FakeEngine())
    held = [
        asyncio.create_task(read(fleet.ask(other, (*LONG, n), [prefill.candidate()])))
        for n in range(3)
    ]
    await eventually(lambda: prefill.engine.stats().queued_requests == 2)
    answer = await read(fleet.ask(decode, LONG, [prefill.candidate()]))
    assert answer.prefilled.mode == types_pb2.PREFILL_MODE_LOCAL
    assert answer.prefilled.reason == "PREFILL_QUEUE_FULL"
    prefill.engine.may_prefill.set()
    await asyncio.gather(*held)
    await assert_nothing_left(prefill, decode, other)


async def test_lost_prefill_worker_ends_in_local_prefill_and_quarantine(
    fleet: WorkerFleet,
) -> None:
    prefill, decode = await pair(fleet)
    prefill.engine.may_prefill.clear()
    running = asyncio.create_task(read(fleet.ask(decode, LONG, [prefill.candidate()])))
    await eventually(lambda: prefill.engine.stats().prefilling_requests == 1)
    await prefill.cable.cut()
    answer = await running
    assert answer.prefilled.mode == types_pb2.PREFILL_MODE_LOCAL
    assert answer.prefilled.reason == "PREFILL_FAILED"
    assert list(answer.prefilled.failed_attempts) == ["p0: PEER_LOST"]
    assert answer.tokens == generated(LONG, 8)
    assert not decode.is_clean(), "blocks that a lost writer knows are kept out of use"
    assert connected(decode) == []
    # The worker behind the cut line saw the same break and stopped writing by itself.
    await eventually(lambda: prefill.engine.aborted_prefills == 1)
    await assert_nothing_left(prefill, decode)


async def test_quarantined_blocks_are_not_reused(fleet: WorkerFleet) -> None:
    prefill, decode = await pair(fleet)
    prefill.engine.may_prefill.clear()
    call = fleet.ask(decode, LONG, [prefill.candidate()])
    running = asyncio.create_task(read(call))
    await eventually(lambda: prefill.engine.stats().prefilling_requests == 1)
    (exposed,) = decode.engine.reserved_blocks()
    await prefill.cable.cut()
    await running
    assert exposed in decode.engine.reserved_blocks()  # a probe may hold a block of its own beside
    again = decode.engine.reserve(request_of(LONG))
    assert not set(again.destination.block_ids) & set(exposed)
    decode.engine.release(again)
    await assert_nothing_left(prefill, decode)


async def test_corrupt_receipt_is_refused_and_the_prompt_computed_here(
    fleet: WorkerFleet,
) -> None:
    prefill, decode = await pair(fleet)
    fleet.fabric.faults_towards(decode.incarnation).doubled_notices = 1
    answer = await read(fleet.ask(decode, LONG, [prefill.candidate()]))
    assert answer.prefilled.mode == types_pb2.PREFILL_MODE_LOCAL
    assert list(answer.prefilled.failed_attempts) == ["p0: KV_MISMATCH"]
    assert answer.tokens == generated(LONG, 8)
    await assert_nothing_left(prefill, decode)


async def test_failed_write_ends_in_local_prefill(fleet: WorkerFleet) -> None:
    prefill, decode = await pair(fleet)
    fleet.fabric.faults_towards(decode.incarnation).failing_writes = 1
    answer = await read(fleet.ask(decode, LONG, [prefill.candidate()]))
    assert answer.prefilled.mode == types_pb2.PREFILL_MODE_LOCAL
    (attempt,) = answer.prefilled.failed_attempts
    assert attempt.startswith("p0: ")
    assert answer.tokens == generated(LONG, 8)
    await assert_nothing_left(prefill, decode)


async def test_forgotten_peer_introduces_itself_again(fleet: WorkerFleet) -> None:
    prefill, decode = await pair(fleet)
    await read(fleet.ask(decode, LONG, [prefill.candidate()]))
    await prefill.transport.disconnect(decode.incarnation)
    other = tuple(range(300, 340))
    answer = await read(fleet.ask(decode, other, [prefill.candidate()]))
    assert answer.prefilled.mode == types_pb2.PREFILL_MODE_REMOTE
    assert answer.tokens == generated(other, 8)
    await assert_nothing_left(prefill, decode)


async def test_full_pool_goes_up_to_the_router(fleet: WorkerFleet) -> None:
    prefill = await fleet.prefill("p0", FakeEngine())
    decode = await fleet.decode("d0", FakeEngine(blocks=14))
    await eventually(lambda: connected(decode) == ["p0"])
    decode.engine.may_decode.clear()
    first = fleet.ask(decode, LONG, [prefill.candidate()])
    await anext(first)
    with pytest.raises(OverloadedError) as refused:
        await read(fleet.ask(decode, tuple(range(500, 540)), [prefill.candidate()]))
    assert refused.value.reason == "KV_POOL_FULL"
    await first.cancel()
    await assert_nothing_left(prefill, decode)


async def test_engine_that_cannot_prefill_says_so(fleet: WorkerFleet) -> None:
    decode = await fleet.decode("d0", FakeEngine(prefills_locally=False))
    with pytest.raises(BatonError) as refused:
        await read(fleet.ask(decode, LONG))
    assert refused.value.reason == "PREFILL_FAILED"


async def test_deadline_stops_everything_below(fleet: WorkerFleet) -> None:
    prefill, decode = await pair(fleet)
    prefill.engine.may_prefill.clear()
    with pytest.raises(DeadlineError):
        await read(fleet.ask(decode, LONG, [prefill.candidate()], timeout_s=0.2))
    await eventually(lambda: prefill.engine.aborted_prefills == 1)
    await assert_nothing_left(prefill, decode)


async def cancel_and_check(call: Any, *workers: Worker) -> None:
    await call.cancel()
    with pytest.raises(CancelledByPeerError):
        await read(call)
    await assert_nothing_left(*workers)


async def test_cancel_while_waiting_for_the_prefill_worker(fleet: WorkerFleet) -> None:
    prefill, decode = await pair(fleet)
    prefill.engine.may_prefill.clear()
    ahead = fleet.ask(decode, (*LONG, 1), [prefill.candidate()])
    await eventually(lambda: prefill.engine.stats().prefilling_requests == 1)
    call = fleet.ask(decode, LONG, [prefill.candidate()])
    await eventually(lambda: prefill.engine.stats().queued_requests == 1)
    await call.cancel()
    await eventually(lambda: prefill.engine.stats().queued_requests == 0)
    await cancel_and_check(ahead, prefill, decode)


async def test_cancel_while_kv_arrives(fleet: WorkerFleet) -> None:
    prefill, decode = await pair(fleet)
    prefill.engine.may_prefill.clear()
    call = fleet.ask(decode, LONG, [prefill.candidate()])
    await eventually(lambda: prefill.engine.stats().prefilling_requests == 1)
    await cancel_and_check(call, prefill, decode)
    assert prefill.engine.aborted_prefills == 1


async def test_writer_that_does_not_confirm_its_stop_is_shut_out(
    fleet: WorkerFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baton.rpc.link.CANCEL_TIMEOUT_S", 0.2)
    prefill, decode = await pair(fleet)
    faults = fleet.fabric.faults_towards(decode.incarnation)
    faults.hanging_writes = 1
    call = fleet.ask(decode, LONG, [prefill.candidate()])
    await eventually(lambda: prefill.engine.stats().prefilling_requests == 1)
    await call.cancel()
    await eventually(lambda: not decode.transport.is_connected(prefill.incarnation))
    assert not decode.is_clean()
    await eventually(decode.is_clean)
    faults.release_hanging()
    await assert_nothing_left(prefill, decode)


async def test_cancel_while_tokens_flow(fleet: WorkerFleet) -> None:
    prefill, decode = await pair(fleet)
    decode.engine.may_decode.clear()
    call = fleet.ask(decode, LONG, [prefill.candidate()])
    answer = Answer()
    while not answer.tokens:
        take(answer, await anext(call))
    await call.cancel()
    await assert_nothing_left(prefill, decode)
    assert answer.tokens == generated(LONG, 1)


async def test_cancel_during_local_prefill(fleet: WorkerFleet) -> None:
    prefill, decode = await pair(fleet)
    decode.engine.may_prefill.clear()
    call = fleet.ask(decode, SHORT)
    await eventually(lambda: decode.engine.stats().prefilling_requests == 1)
    await cancel_and_check(call, prefill, decode)


async def test_broken_router_link_frees_its_requests(fleet: WorkerFleet) -> None:
    prefill, decode = await pair(fleet)
    decode.engine.may_decode.clear()
    calls = [fleet.ask(decode, (*LONG, n), [prefill.candidate()]) for n in range(3)]
    for call in calls:
        await anext(call)
    await decode.cable.cut()
    await assert_nothing_left(prefill, decode)


async def test_sixteen_at_once_get_their_own_answers(fleet: WorkerFleet) -> None:
    split = SplitPolicy(prompt_length_threshold=8, prefill_queue_max=32)
    fleet.config = fleet.config.model_copy(update={"split_policy": split})
    prefill = await fleet.prefill("p0", FakeEngine(blocks=256))
    decode = await fleet.decode("d0", FakeEngine(blocks=256))
    prompts = [tuple(range(n, n + 20 + n)) for n in range(1, 17)]
    answers = await asyncio.gather(
        *(read(fleet.ask(decode, prompt, [prefill.candidate()])) for prompt in prompts)
    )
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.tokens == generated(prompt, 8)
        assert answer.prefilled.mode == types_pb2.PREFILL_MODE_REMOTE
    await assert_nothing_left(prefill, decode)
