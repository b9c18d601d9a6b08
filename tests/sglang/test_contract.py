"""What a pair of SGLang engines does for the mesh, with the real engine on both sides."""

import asyncio
from typing import Any

import pytest

from baton.blocks import block_hashes, root_hash
from baton.errors import InvalidRequestError, OverloadedError, UnavailableError
from baton.models import DEFAULT_MODEL
from baton.state import keys
from baton.state.kv_wire import set_members
from tests.sglang.conftest import Fleet, prompt
from tests.support.reference import Reference
from tests.support.waiting import eventually
from tests.support.worker_fleet import Answer, read, take

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]


@pytest.mark.parametrize("length", [1, 16, 17, 300])
async def test_answer_is_that_of_transformers(
    fleet: Fleet, reference: Reference, length: int
) -> None:
    answer = await read(fleet.ask(prompt(length, seed=length), max_tokens=12))

    assert answer.tokens == reference.greedy(prompt(length, seed=length), 12)
    assert answer.prefilled.prefill_worker_id == "prefill-0"


async def test_sixteen_requests_at_once_are_answered_right(
    fleet: Fleet, reference: Reference
) -> None:
    prompts = [prompt(20 + 7 * n, seed=100 + n) for n in range(16)]

    answers = await asyncio.gather(*(read(fleet.ask(ids, max_tokens=6)) for ids in prompts))

    assert [it.tokens for it in answers] == [reference.greedy(ids, 6) for ids in prompts]
    await fleet.settle()


async def test_more_prompts_than_may_wait_are_refused_as_load_and_the_others_answered(
    fleet: Fleet, reference: Reference
) -> None:
    prompts = [prompt(300, seed=500 + n) for n in range(48)]

    outcomes = await asyncio.gather(
        *(read(fleet.ask(ids, max_tokens=4)) for ids in prompts), return_exceptions=True
    )

    refused = [it for it in outcomes if isinstance(it, OverloadedError)]
    assert refused
    assert {(it.reason, it.retry_after_s is not None) for it in refused} == {
        ("PREFILL_QUEUE_FULL", True)
    }
    for ids, outcome in zip(prompts, outcomes, strict=True):
        if outcome not in refused:
            assert isinstance(outcome, Answer), outcome
            assert outcome.tokens == reference.greedy(ids, 4)
    await fleet.settle()


async def test_times_of_the_stages_add_up_to_the_first_token(fleet: Fleet) -> None:
    answer = await read(fleet.ask(prompt(200, seed=2)))

    told = answer.prefilled
    assert told.prefill_compute_s >= 0  # zero where the prefill leg told it later
    assert told.kv_transfer_s > 0
    assert told.receipt.bytes > 0
    assert told.prefill_queue_s >= 0


async def test_repeated_prompt_is_found_in_both_caches(fleet: Fleet) -> None:
    ids = prompt(160, seed=3)
    first = await read(fleet.ask(ids))
    await eventually(lambda: _is_indexed(fleet, "decode-0", ids), timeout_s=20)

    second = await read(fleet.ask(ids))

    assert second.tokens == first.tokens
    assert second.prefilled.local_cached_tokens >= 144
    assert second.prefilled.receipt.bytes < first.prefilled.receipt.bytes


async def test_cache_events_feed_the_index(fleet: Fleet) -> None:
    ids = prompt(96, seed=4)

    await read(fleet.ask(ids))

    for name in ("prefill-0", "decode-0"):
        await eventually(lambda name=name: _is_indexed(fleet, name, ids), timeout_s=20)


async def _is_indexed(fleet: Fleet, name: str, ids: list[int]) -> bool:
    hashes = block_hashes(ids[: len(ids) // 16 * 16], 16, root_hash(DEFAULT_MODEL))
    incarnation = fleet.workers[name].record.incarnation
    members = await fleet.redis.smembers(keys.kv_blocks(incarnation))
    return set(set_members(hashes)) <= set(members)


async def test_too_long_prompt_is_refused_before_any_leg_is_dispatched(fleet: Fleet) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        await read(fleet.ask(prompt(8200)))

    assert refused.value.reason == "PROMPT_LENGTH"
    await fleet.settle()


async def test_seed_that_would_be_ignored_is_refused_by_name(fleet: Fleet) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        await read(fleet.ask(prompt(20), temperature=1.0, seed=7))

    assert refused.value.field == "sampling_params.seed"


async def test_dead_prefill_worker_costs_one_attempt(fleet: Fleet) -> None:
    dead = fleet.candidate("prefill-0", worker_id="gone", incarnation="x", address="127.0.0.1:1")

    answer = await read(fleet.ask(prompt(40), candidates=[dead, fleet.candidate("prefill-0")]))

    assert len(answer.prefilled.failed_attempts) == 1
    assert answer.prefilled.prefill_worker_id == "prefill-0"


@pytest.mark.parametrize("delay_s", [0.0, 0.005, 0.02, 0.05, 0.1])
async def test_cancelled_before_its_first_token_leaves_nothing(
    fleet: Fleet, delay_s: float
) -> None:
    call = fleet.ask(prompt(700, seed=int(delay_s * 1000) + 10), max_tokens=40)
    await asyncio.sleep(delay_s)

    await call.cancel()

    await fleet.settle()


async def test_cancelled_in_mid_stream_leaves_nothing(fleet: Fleet) -> None:
    call = fleet.ask(prompt(60), max_tokens=400)
    answer = Answer()
    async for event in call:
        take(answer, event)
        if len(answer.tokens) >= 3:
            break

    await call.cancel()

    await fleet.settle()


async def test_many_cancelled_at_random_leave_nothing(fleet: Fleet) -> None:
    async def one(number: int) -> None:
        call = fleet.ask(prompt(30 * number + 20, seed=200 + number), max_tokens=30)
        await asyncio.sleep(0.02 * number)
        await call.cancel()

    await asyncio.gather(*(one(number) for number in range(12)))

    await fleet.settle()
    assert await _answers(fleet)


async def _answers(fleet: Fleet, **options: Any) -> bool:
    try:
        answer = await read(fleet.ask(prompt(33), max_tokens=4, **options))
    except UnavailableError:
        return False
    return len(answer.tokens) == 4
