"""Pairs of engines that meet in rooms, with real gRPC and engines without a model."""

import asyncio
from typing import Any

import pytest

from baton.config import SplitPolicy
from baton.errors import OverloadedError, UnavailableError
from tests.support.fake_engine import generated
from tests.support.room_engine import FakeRoomEngine, Rooms
from tests.support.waiting import eventually
from tests.support.worker_fleet import Answer, Worker, WorkerFleet, read, take

QUEUE_MAX = 2
PROMPT = tuple(range(1, 34))


@pytest.fixture
async def fleet(fleet: WorkerFleet) -> WorkerFleet:
    split = SplitPolicy(prefill_queue_max=QUEUE_MAX)
    fleet.config = fleet.config.model_copy(update={"split_policy": split})
    return fleet


async def start(fleet: WorkerFleet, prefills: int = 1) -> tuple[Worker, list[Worker]]:
    rooms = Rooms()
    found = [
        await fleet.prefill(f"p{n}", FakeRoomEngine(rooms, f"127.0.0.1:{n + 1}"))
        for n in range(prefills)
    ]
    decode = await fleet.decode("d0", FakeRoomEngine(rooms))
    names = [worker.worker_id for worker in found]
    await eventually(lambda: decode.service.connected_prefill_workers() == names)
    return decode, found


def is_idle(worker: Worker) -> bool:
    stats = worker.engine.stats()
    return not (stats.queued_requests or stats.prefilling_requests or stats.decoding_requests)


async def assert_nothing_left(*workers: Worker) -> None:
    await eventually(lambda: all(map(is_idle, workers)))


async def fill(fleet: WorkerFleet, decode: Worker, prefill: Worker) -> list[asyncio.Task[Answer]]:
    """Holds a prefill worker's engine with one prompt, and as many behind it as may wait."""
    prefill.engine.may_prefill.clear()
    tasks = [
        asyncio.create_task(read(fleet.ask(decode, (*PROMPT, n), [prefill.candidate()])))
        for n in range(1 + QUEUE_MAX)
    ]
    await eventually(lambda: prefill.engine.stats().queued_requests == QUEUE_MAX)
    return tasks


async def release(prefill: Worker, tasks: list[asyncio.Task[Answer]]) -> None:
    prefill.engine.may_prefill.set()
    for number, answer in enumerate(await asyncio.gather(*tasks)):
        assert answer.tokens == generated((*PROMPT, number), 8)


async def test_pair_answers_and_uses_a_room_once(fleet: WorkerFleet) -> None:
    decode, (prefill,) = await start(fleet)

    answers = [await read(fleet.ask(decode, PROMPT, [prefill.candidate()])) for _ in range(2)]

    assert [answer.tokens for answer in answers] == [generated(PROMPT, 8)] * 2
    used = prefill.engine.rooms_used
    assert len(set(used)) == len(used) == 3, "the pair's proof and two requests"
    assert all(0 <= number < 1 << 63 for number in used)
    await assert_nothing_left(decode, prefill)


async def test_stages_that_are_told_after_the_first_token_still_arrive(fleet: WorkerFleet) -> None:
    decode, (prefill,) = await start(fleet)
    prefill.engine.may_report.clear()
    decode.engine.may_decode.clear()
    call = fleet.ask(decode, PROMPT, [prefill.candidate()])
    answer = Answer()
    while not answer.tokens:
        take(answer, await anext(call))
    assert answer.prefilled.prefill_compute_s == 0

    prefill.engine.may_report.set()
    link = decode.service._worker._legs._links.link(prefill.address)
    await eventually(lambda: link.idle_since_s is not None)
    decode.engine.may_decode.set()
    async for event in call:
        take(answer, event)

    assert (answer.stages.prefill_queue_s, answer.stages.prefill_compute_s) == (0.001, 0.002)
    total_s = answer.prefilled.kv_transfer_s
    assert answer.stages.kv_transfer_s == pytest.approx(max(0.0, total_s - 0.003))
    assert answer.tokens == generated(PROMPT, 8)


async def test_full_prefill_worker_is_a_matter_of_load(fleet: WorkerFleet) -> None:
    decode, (prefill,) = await start(fleet)
    tasks = await fill(fleet, decode, prefill)

    with pytest.raises(OverloadedError) as refused:
        await read(fleet.ask(decode, PROMPT, [prefill.candidate()]))

    assert refused.value.reason == "PREFILL_QUEUE_FULL"
    assert refused.value.retry_after_s
    assert decode.service.connected_prefill_workers() == ["p0"]
    await release(prefill, tasks)


async def test_next_worker_is_tried_when_one_is_full(fleet: WorkerFleet) -> None:
    decode, (full, other) = await start(fleet, prefills=2)
    tasks = await fill(fleet, decode, full)

    answer = await read(fleet.ask(decode, PROMPT, [full.candidate(), other.candidate()]))

    assert answer.tokens == generated(PROMPT, 8)
    assert answer.prefilled.prefill_worker_id == "p1"
    assert list(answer.prefilled.failed_attempts) == ["p0: PREFILL_QUEUE_FULL"]
    await release(full, tasks)


async def test_full_and_lost_workers_together_are_a_fault(fleet: WorkerFleet) -> None:
    decode, (full,) = await start(fleet)
    tasks = await fill(fleet, decode, full)
    gone = full.candidate()
    gone.worker_id, gone.incarnation, gone.address = "gone", "x", "127.0.0.1:1"

    with pytest.raises(UnavailableError) as failed:
        await read(fleet.ask(decode, PROMPT, [full.candidate(), gone]))

    assert failed.value.reason == "PREFILL_FAILED"
    await release(full, tasks)


async def test_lost_prefill_engine_ends_the_decode_leg_and_the_next_one_takes_over(
    fleet: WorkerFleet,
) -> None:
    decode, (first, second) = await start(fleet, prefills=2)
    first.engine.may_prefill.clear()
    call = fleet.ask(decode, PROMPT, [first.candidate(), second.candidate()])
    await eventually(lambda: first.engine.stats().prefilling_requests == 1)

    first.engine.is_lost.set()
    answer = await read(call)

    assert answer.tokens == generated(PROMPT, 8)
    assert list(answer.prefilled.failed_attempts) == ["p0: ENGINE_DOWN"]
    await assert_nothing_left(decode, first, second)


async def test_engine_that_came_back_elsewhere_is_met_there_at_once(fleet: WorkerFleet) -> None:
    decode, (prefill,) = await start(fleet)
    before = prefill.engine.rendezvous
    prefill.engine.is_lost.set()
    await eventually(lambda: prefill.engine.rendezvous != before)

    answer = await read(fleet.ask(decode, PROMPT, [prefill.candidate()]))

    assert answer.tokens == generated(PROMPT, 8)


async def test_lost_decode_engine_ends_its_stream_and_the_prefill_leg(fleet: WorkerFleet) -> None:
    decode, (prefill,) = await start(fleet)
    decode.engine.may_decode.clear()
    call = fleet.ask(decode, PROMPT, [prefill.candidate()])
    await anext(call)

    decode.engine.is_lost.set()
    with pytest.raises(UnavailableError) as lost:
        await _drain(call)

    assert lost.value.reason == "ENGINE_DOWN"
    await assert_nothing_left(decode, prefill)


async def test_cancel_before_the_first_token_ends_both_legs(fleet: WorkerFleet) -> None:
    decode, (prefill,) = await start(fleet)
    prefill.engine.may_prefill.clear()
    call = fleet.ask(decode, PROMPT, [prefill.candidate()])
    await eventually(lambda: prefill.engine.stats().prefilling_requests == 1)

    await call.cancel()

    await eventually(lambda: prefill.engine.aborted_prefills == 1)
    await assert_nothing_left(decode, prefill)


async def _drain(call: Any) -> None:
    async for _ in call:
        pass
