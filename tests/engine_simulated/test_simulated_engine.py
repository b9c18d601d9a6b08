"""The simulated engine keeps the contract of `Engine` and the times of its cost model."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

import pytest

from baton.engine.base import BlocksRemoved, BlocksStored, TokenEvent
from baton.engine.simulated import SimulatedEngine, load_spec
from baton.engine.simulated.tokens import answer
from baton.errors import (
    InvalidRequestError,
    OverloadedError,
    PreconditionError,
    UnavailableError,
)
from baton.latency import OnlineFit, WorkerCosts
from baton.requests import EngineRequest, FinishReason, Priority, SamplingParams
from tests.engine_simulated.conftest import BLOCK, SPEC, StartEngine, introduce, transport_of

PROMPT = tuple(range(1, 31))


def request(
    prompt: tuple[int, ...] = PROMPT, max_tokens: int = 8, name: str = "r", **more: object
) -> EngineRequest:
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    return EngineRequest(name, prompt, sampling, **more)  # type: ignore[arg-type]


def expected(prompt: tuple[int, ...], count: int) -> list[int]:
    return answer(prompt, count, SPEC.vocab_size, SPEC.eos_ids)


async def read(engine: SimulatedEngine, it: EngineRequest) -> list[TokenEvent]:
    return [event async for event in engine.generate(it)]


def tokens(events: list[TokenEvent]) -> list[int]:
    return [token for event in events for token in event.token_ids]


async def test_answer_follows_from_the_prompt_alone(start_engine: StartEngine) -> None:
    one, other = await start_engine(), await start_engine(token_budget=16)
    events = await read(one, request())
    assert tokens(events) == expected(PROMPT, 8)
    assert tokens(await read(other, request())) == expected(PROMPT, 8)
    assert events[-1].finish_reason is FinishReason.LENGTH
    assert events[0].prefilled is not None
    assert events[0].prefilled.first_token == events[0].token_ids[0]


async def test_resumed_request_goes_on_where_it_was(start_engine: StartEngine) -> None:
    engine = await start_engine()
    so_far = expected(PROMPT, 3)
    rest = await read(engine, request((*PROMPT, *so_far), max_tokens=5, resumed_tokens=3))
    assert so_far + tokens(rest) == expected(PROMPT, 8)


async def test_end_of_sequence_never_comes_by_itself() -> None:
    drawn = answer(PROMPT, 500, 4, frozenset({0, 3}))
    assert set(drawn) == {1, 2}


async def test_stop_token_and_context_end_an_answer(start_engine: StartEngine) -> None:
    engine = await start_engine()
    stop = expected(PROMPT, 3)[2]
    sampling = SamplingParams(max_tokens=8, stop_token_ids=(stop,))
    events = await read(engine, EngineRequest("r", PROMPT, sampling))
    assert tokens(events) == expected(PROMPT, expected(PROMPT, 8).index(stop) + 1)
    assert events[-1].finish_reason is FinishReason.STOP
    room = 64 * BLOCK - len(PROMPT)  # the pool is smaller than the context
    assert len(tokens(await read(engine, request(max_tokens=10_000)))) == room


async def test_second_request_finds_the_first_ones_blocks(start_engine: StartEngine) -> None:
    engine = await start_engine()
    assert engine.match(request()) == 0
    await read(engine, request())
    assert engine.match(request()) == len(PROMPT) // BLOCK * BLOCK
    events = await read(engine, request())
    assert events[0].prefilled is not None
    assert events[0].prefilled.cached_tokens == len(PROMPT) // BLOCK * BLOCK


async def test_events_tell_what_the_cache_holds(start_engine: StartEngine) -> None:
    engine = await start_engine(kv_memory_bytes=16 * BLOCK * 8)
    held: set[int] = set()
    rng = random.Random(7)
    for _ in range(20):
        await read(engine, request(tuple(rng.randrange(1, 999) for _ in range(20)), 4))
        for event in engine.take_kv_events():
            if isinstance(event, BlocksStored):
                held |= set(event.hashes)
            elif isinstance(event, BlocksRemoved):
                held -= set(event.hashes)
    assert held == set(engine.cached_hashes())
    assert 12 < len(held) <= 16


async def test_remote_prefill_answers_as_local(start_engine: StartEngine) -> None:
    prefill, decode = await start_engine(token_budget=8), await start_engine()
    await introduce(prefill, decode)
    reservation = decode.reserve(request())
    done = await prefill.prefill(request(), reservation.destination)
    assert done.receipt is not None
    assert done.receipt.blocks == len(reservation.destination.block_ids)
    await transport_of(decode).verify(done.receipt, len(PROMPT), 1.0)
    events = [event async for event in decode.generate(request(), reservation, done)]
    assert tokens(events) == expected(PROMPT, 8)
    assert events[0].token_ids[0] == done.first_token
    assert prefill.stats().kv_blocks_owned == decode.stats().kv_blocks_owned == 0
    assert prefill.match(request()) == decode.match(request()) == len(PROMPT) // BLOCK * BLOCK


async def test_only_missing_blocks_are_transferred(start_engine: StartEngine) -> None:
    prefill, decode = await start_engine(), await start_engine()
    await introduce(prefill, decode)
    await read(decode, request(PROMPT[:16], 1))
    reservation = decode.reserve(request())
    assert reservation.destination.cached_tokens == 16
    done = await prefill.prefill(request(), reservation.destination)
    assert done.receipt is not None
    assert done.receipt.blocks == 8 - 4
    decode.release(reservation)


async def test_released_reservation_leaves_nothing(start_engine: StartEngine) -> None:
    engine = await start_engine()
    reservation = engine.reserve(request())
    assert engine.stats().kv_leases == 1
    engine.release(reservation)
    stats = engine.stats()
    assert (stats.kv_leases, stats.kv_blocks_owned) == (0, 0)
    with pytest.raises(PreconditionError):
        engine.release(reservation)


async def test_closing_the_iterator_frees_at_any_moment(start_engine: StartEngine) -> None:
    engine = await start_engine()
    for count in range(4):
        stream = cast("AsyncGenerator[TokenEvent, None]", engine.generate(request(max_tokens=200)))
        async with aclosing(stream) as events:
            for _ in range(count):
                await anext(events)
        assert engine.stats().kv_blocks_owned == 0
        assert engine.stats().decoding_requests == 0


async def test_adopted_reservation_is_freed_when_closed_before_it_runs(
    start_engine: StartEngine,
) -> None:
    prefill, decode = await start_engine(), await start_engine()
    await introduce(prefill, decode)
    reservation = decode.reserve(request())
    done = await prefill.prefill(request(), reservation.destination)
    stream = cast("AsyncGenerator[TokenEvent, None]", decode.generate(request(), reservation, done))
    async with aclosing(stream) as events:
        await anext(events)
    assert decode.stats().kv_blocks_owned == 0


async def test_cancelled_prefill_frees_its_blocks(start_engine: StartEngine) -> None:
    slow = WorkerCosts(prefill=OnlineFit((60.0, 1e-12, 1e-12)))
    prefill, decode = await start_engine(costs=slow), await start_engine()
    await introduce(prefill, decode)
    reservation = decode.reserve(request())
    task = asyncio.create_task(prefill.prefill(request(), reservation.destination))
    while not prefill.stats().prefilling_requests:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert prefill.stats().kv_blocks_owned == 0
    decode.release(reservation)


async def test_full_pool_preempts_and_everybody_still_finishes(start_engine: StartEngine) -> None:
    engine = await start_engine(kv_memory_bytes=16 * BLOCK * 8)
    prompts = [tuple(range(start, start + 10)) for start in range(1, 80, 10)]
    events = await asyncio.gather(
        *(read(engine, request(prompt, 24, str(prompt))) for prompt in prompts)
    )
    assert [tokens(it) for it in events] == [expected(prompt, 24) for prompt in prompts]
    assert engine.preemptions > 0


async def test_reserving_more_than_the_pool_holds_is_refused(start_engine: StartEngine) -> None:
    engine = await start_engine(kv_memory_bytes=16 * BLOCK * 8)
    held = [engine.reserve(request(name=name)) for name in "a"]
    with pytest.raises(OverloadedError, match="full"):
        engine.reserve(request(tuple(range(100, 140))))
    with pytest.raises(InvalidRequestError):
        engine.reserve(request(tuple(range(1, 65))))
    for reservation in held:
        engine.release(reservation)


async def test_high_priority_goes_first(start_engine: StartEngine) -> None:
    engine = await start_engine(max_running=1)
    ended: list[str] = []

    async def run(name: str, priority: Priority) -> None:
        await read(engine, request(name=name, priority=priority))
        ended.append(name)

    async with asyncio.TaskGroup() as tasks:
        for name, priority in (("low", Priority.LOW), ("high", Priority.HIGH)):
            tasks.create_task(run(name, priority))
    assert ended == ["high", "low"]


async def test_prompt_alone_takes_its_predicted_time(start_engine: StartEngine) -> None:
    costs = WorkerCosts(OnlineFit((0.01, 1e-3, 1e-5)), OnlineFit((1e-3, 1e-3, 1e-12)))
    engine = await start_engine(costs=costs, token_budget=16)
    began_s = time.monotonic()
    events = await read(engine, request(max_tokens=11))
    took_s = time.monotonic() - began_s
    assert events[0].prefilled is not None
    # Chunk by chunk, it adds up to what the model says of the whole.
    assert events[0].prefilled.compute_s == pytest.approx(costs.prefill_s(len(PROMPT), 0), abs=1e-6)
    assert took_s >= costs.prefill_s(len(PROMPT), 0) + 10 * 2e-3
    assert engine.stats().busy_share > 0


async def test_waiting_prompts_are_counted(start_engine: StartEngine) -> None:
    slow = WorkerCosts(prefill=OnlineFit((60.0, 1e-12, 1e-12)))
    engine = await start_engine(costs=slow, max_running=1)
    tasks = [asyncio.create_task(read(engine, request(name=name))) for name in "ab"]
    while not engine.stats().prefilling_requests:
        await asyncio.sleep(0)
    stats = engine.stats()
    assert (stats.queued_requests, stats.prefilling_requests) == (1, 1)
    assert stats.queued_tokens == 2 * len(PROMPT)
    await engine.stop()
    for task in tasks:
        with pytest.raises(UnavailableError):
            await task


async def test_late_timers_do_not_slow_the_engine_down(start_engine: StartEngine) -> None:
    costs = WorkerCosts(OnlineFit((1e-3, 1e-12, 1e-12)), OnlineFit((2e-3, 1e-12, 1e-12)))
    engine = await start_engine(costs=costs)
    began_s = time.monotonic()
    stream = cast("AsyncGenerator[TokenEvent, None]", engine.generate(request(max_tokens=40)))
    async with aclosing(stream) as events:
        await anext(events)
        time.sleep(0.06)  # noqa: ASYNC251 - the loop stands still on purpose
        seen = 1
        while seen < 25:
            seen += len((await anext(events)).token_ids)
    assert time.monotonic() - began_s < 25 * 2e-3 + 0.05


def test_default_model_has_an_outline() -> None:
    spec = load_spec("baton-tiny")
    assert (spec.context_length, spec.vocab_size, spec.kv_bytes_per_token) == (8192, 4096, 2048)
    assert spec.eos_ids == {0}
