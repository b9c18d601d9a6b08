"""Steps sized by what they cost: within the target, never to a standstill. No torch."""

from array import array

from hypothesis import given
from hypothesis import strategies as st

from baton.engine.torch.job import BlockFeed
from baton.engine.torch.scheduler import Scheduler
from baton.engine.torch.sizing import FEWEST_TOKENS, MOST_TOKENS, StepLoad, StepSizer
from tests.engine.test_scheduler import NoTransfer, make_job, make_pool, shape, step

PATIENCE_S = 2.0


def cost_s(load: StepLoad) -> float:
    return (
        2e-3
        + 1e-3 * load.decodes
        + 1e-6 * load.resident_tokens
        + 1e-4 * load.prompt_tokens
        + 1e-8 * load.token_pairs
    )


def learnt(target_s: float, patience_s: float = PATIENCE_S) -> StepSizer:
    """Returns a sizer that saw steps of all kinds."""
    sizer = StepSizer(target_s, patience_s)
    for round_ in range(60):
        for prompt in (0, 64, 512):
            decodes = round_ % 9 if prompt else 1 + round_ % 9
            load = StepLoad(decodes, decodes * 37 * round_, prompt, prompt * 50.0 * (round_ % 7))
            sizer.learn(load, cost_s(load))
    return sizer


def test_prompts_fill_the_step_up_to_the_target() -> None:
    sizer = learnt(0.05)
    tokens = sizer.prompt_tokens(8, 4000, 0)
    filled_s = cost_s(StepLoad(8, 4000, tokens, 0.0))
    assert 0.8 * 0.04 < filled_s < 0.05


def test_a_prompt_that_breaks_the_target_anyway_gets_over_it_in_few_steps() -> None:
    """Recorded steps of 4 ms, and 30 ms more as soon as a step has a prompt in it."""
    sizer = StepSizer(0.01, PATIENCE_S)
    for round_ in range(60):
        for prompt in (0, 64, 512, 4096):
            decodes = 1 + round_ % 9
            any_s = 0.03 if prompt else 0.0
            sizer.learn(StepLoad(decodes, 100 * round_, prompt), 4e-3 + any_s + 1e-5 * prompt)
    assert 1000 < sizer.prompt_tokens(4, 2000, 0) < 4000


def test_without_decodes_steps_are_longer() -> None:
    sizer = learnt(0.05)
    assert sizer.prompt_tokens(0, 0, 0) > 3 * sizer.prompt_tokens(1, 100, 0)


def test_where_first_tokens_may_take_seconds_steps_without_decodes_take_a_tenth_of_it() -> None:
    tokens = learnt(0.05, patience_s=6.0).prompt_tokens(0, 0, 0)
    assert 0.5 < cost_s(StepLoad(0, 0, tokens)) < 0.7
    assert tokens > 2 * learnt(0.05, patience_s=1.0).prompt_tokens(0, 0, 0)


def test_decodes_beyond_the_target_have_no_room() -> None:
    sizer = learnt(0.05)
    assert sizer.has_room(20, 4000, 0.0)
    assert not sizer.has_room(50, 4000, 0.99 * PATIENCE_S)


def test_nobody_waits_for_ever_for_room() -> None:
    assert learnt(0.05).has_room(50, 4000, PATIENCE_S)


@given(
    st.floats(1e-4, 10),
    st.integers(0, 512),
    st.integers(0, 1 << 20),
    st.integers(0, 1 << 17),
)
def test_every_step_makes_progress_and_is_bounded(
    target_s: float, decodes: int, resident: int, context: int
) -> None:
    tokens = learnt(target_s).prompt_tokens(decodes, resident, context)
    assert FEWEST_TOKENS <= tokens <= MOST_TOKENS


def test_scheduler_gives_prompts_what_decodes_leave() -> None:
    sizer = learnt(0.05)
    scheduler = Scheduler(make_pool(2048), token_budget=4096, max_running=64, sizer=sizer)
    scheduler.add(make_job(0, 20))
    assert step(scheduler) == [(0, 0, 20)]
    scheduler.add(make_job(1, 4000))
    decode, prompt = shape(scheduler.schedule(0.0))
    assert decode == (0, 20, 1)
    assert prompt[2] == sizer.prompt_tokens(1, 20, 0) < 4000


def test_a_prompt_leaves_time_to_a_decode_that_comes_with_its_kv() -> None:
    """It got the whole step's time once, since nobody decoded yet: 0.2 s for one token."""
    sizer, pool = learnt(0.05), make_pool(2048)
    scheduler = Scheduler(pool, token_budget=4096, max_running=64, sizer=sizer)
    scheduler.add(make_job(0, 4000))
    received = make_job(1, 20)
    grant = pool.reserve(received.owner, received.tokens, "")
    assert grant is not None
    received.blocks, received.computed = array("q", grant.block_ids), 20
    received.tokens.append(5)
    received.holds_lease = received.is_prefilled = True
    scheduler.add(received)
    decode, prompt = shape(scheduler.schedule(0.0))
    assert decode == (1, 20, 1)
    assert prompt[2] == sizer.prompt_tokens(1, 20, 0) < sizer.prompt_tokens(0, 0, 0)


def test_jobs_wait_while_decodes_have_no_time_left() -> None:
    scheduler = Scheduler(make_pool(512), token_budget=512, max_running=64, sizer=learnt(0.05))
    for arrival in range(60):
        scheduler.add(make_job(arrival, 8))
    assert 25 < len(scheduler.schedule(0.0)) < 45
    assert len(scheduler.schedule(PATIENCE_S)) > 45


def test_prompts_that_are_decoded_elsewhere_share_a_step_whatever_the_target() -> None:
    """A prefill worker computed one prompt at a time where one decode filled the target."""
    scheduler = Scheduler(make_pool(512), token_budget=512, max_running=64, sizer=learnt(0.001))
    for arrival in range(4):
        job = make_job(arrival, 8)
        job.feed = BlockFeed(NoTransfer(), 0)
        scheduler.add(job)
    assert [count for _, _, count in shape(scheduler.schedule(0.0))] == [8, 8, 8, 8]


def test_a_lone_job_never_waits_for_time() -> None:
    scheduler = Scheduler(make_pool(512), token_budget=512, max_running=64, sizer=learnt(1e-4))
    for arrival in range(3):
        scheduler.add(make_job(arrival, 8))
    assert step(scheduler) == [(0, 0, 8)]
