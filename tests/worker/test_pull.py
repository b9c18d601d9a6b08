"""Pulling a prefix from the worker that holds it: when, from whom, and what goes wrong."""

import asyncio
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.decode.pull import PullPlan, plan_pull
from tests.support.fake_engine import FakeEngine, generated
from tests.support.waiting import eventually
from tests.support.worker_fleet import Answer, Worker, WorkerFleet, read

BLOCK = 16
TURN = tuple(range(1, 201))
NEXT_TURN = (*TURN, *generated(TURN, 8), 7, 7, 7)


def computing(prompt: int, seconds_per_token: float = 1e-3) -> Callable[[int], float]:
    return lambda cached: (prompt - cached) * seconds_per_token


def pulling(base_s: float, seconds_per_token: float) -> Callable[[int], float]:
    return lambda tokens: base_s + tokens * seconds_per_token


@pytest.mark.parametrize(
    ("held", "base_s", "plan"),
    [
        pytest.param([], 0.0, None, id="nobody holds more"),
        pytest.param([160], 0.0, (0, 160), id="free is always worth it"),
        pytest.param([160], 0.1, (0, 160), id="costs less than it saves"),
        pytest.param([160], 0.2, None, id="costs more than it saves"),
        pytest.param([160, 320], 0.1, (1, 320), id="the longer one"),
        pytest.param([175], 0.0, (0, 160), id="whole blocks only"),
        pytest.param([4096], 0.0, (0, 496), id="never the last token"),
        pytest.param([32], 0.0, None, id="no more than is here"),
    ],
)
def test_pull_is_planned_by_predicted_seconds(
    held: Sequence[int], base_s: float, plan: tuple[int, int] | None
) -> None:
    made = plan_pull(500, 32, held, BLOCK, computing(500), pulling(base_s, 0.0))
    assert (made and (made.index, made.tokens)) == plan


def test_nothing_is_pulled_before_prompts_were_measured() -> None:
    assert plan_pull(500, 0, [400], BLOCK, lambda cached: None, pulling(0.0, 0.0)) is None


@given(
    prompt=st.integers(1, 2000),
    cached=st.integers(0, 120),
    held=st.lists(st.integers(0, 3000), max_size=3),
    base_s=st.floats(0, 1),
    per_token_s=st.floats(0, 2e-3),
)
def test_plan_always_saves_and_fits(
    prompt: int, cached: int, held: list[int], base_s: float, per_token_s: float
) -> None:
    cached = min(cached * BLOCK, (prompt - 1) // BLOCK * BLOCK)
    plan = plan_pull(prompt, cached, held, BLOCK, computing(prompt), pulling(base_s, per_token_s))
    if plan is None:
        return
    assert isinstance(plan, PullPlan)
    assert cached < plan.tokens <= min(held[plan.index], prompt - 1)
    assert plan.tokens % BLOCK == 0
    assert plan.saved_s > 0


class Two:
    """Two decode workers, of which the first served the last turn."""

    def __init__(self, fleet: WorkerFleet, first: Worker, second: Worker) -> None:
        self.fleet, self.first, self.second = fleet, first, second

    async def ask(self, held: int = 200) -> Answer:
        holders = [self.first.holder(held)]
        return await read(self.fleet.ask(self.second, NEXT_TURN, [], holders=holders))


@pytest.fixture
async def two(fleet: WorkerFleet) -> Two:
    first = await fleet.decode("d0", FakeEngine(blocks=256))
    second = await fleet.decode("d1", FakeEngine(blocks=256))
    await read(fleet.ask(first, TURN, []))
    second.learn_prefill(seconds_per_token=1e-2)
    return Two(fleet, first, second)


async def test_only_missing_blocks_are_pulled(two: Two) -> None:
    await read(two.fleet.ask(two.second, TURN[:50], []))

    answer = await two.ask()

    assert answer.tokens == generated(NEXT_TURN, 8)
    assert answer.prefilled.pulled_from == "d0"
    assert answer.prefilled.pulled_tokens == 200 - 48
    assert answer.prefilled.local_cached_tokens == 200
    assert not answer.prefilled.failed_attempts
    for worker in (two.first, two.second):
        await eventually(worker.is_clean)


async def test_pull_is_not_repeated_for_what_is_here(two: Two) -> None:
    await two.ask()
    again = await two.ask()
    assert again.prefilled.pulled_tokens == 0
    assert again.prefilled.local_cached_tokens >= 200


async def test_prefix_that_is_gone_is_computed(two: Two) -> None:
    answer = await two.ask(held=208)

    assert answer.tokens == generated(NEXT_TURN, 8)
    assert answer.prefilled.pulled_tokens == 0
    assert list(answer.prefilled.failed_attempts) == ["d0: PREFIX_GONE"]
    await eventually(two.second.is_clean)
    assert two.second.service.connected_prefill_workers() == ["d0"], "the pair is not at fault"


async def test_holder_that_is_lost_costs_the_pull_only(two: Two) -> None:
    two.first.engine.may_send.clear()
    asking = asyncio.create_task(two.ask())
    await eventually(lambda: two.first.engine.asked_to_send == 1)

    await two.first.cable.cut()

    answer = await asking
    assert answer.tokens == generated(NEXT_TURN, 8)
    assert list(answer.prefilled.failed_attempts) == ["d0: PEER_LOST"]
    assert two.second.engine.reserved_blocks(), "the holder may still write"
    await eventually(two.second.is_clean)


async def test_cancelled_pull_leaves_nothing(two: Two) -> None:
    two.first.engine.may_send.clear()
    call = two.fleet.ask(two.second, NEXT_TURN, [], holders=[two.first.holder(200)])
    await eventually(lambda: two.first.engine.asked_to_send == 1)

    await call.cancel()

    for worker in (two.first, two.second):
        await eventually(worker.is_clean)


async def test_decode_worker_computes_nothing_for_others(two: Two) -> None:
    candidates = [two.first.candidate()]
    answer = await read(two.fleet.ask(two.second, tuple(range(300, 700)), candidates))
    assert list(answer.prefilled.failed_attempts) == ["d0: CACHED_ONLY"]
