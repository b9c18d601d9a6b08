"""The scheduler alone: order, budget, chunks, preemption. No torch."""

from baton.blocks import root_hash
from baton.engine.torch.job import BlockFeed, Job, Order, Phase, StopRule
from baton.engine.torch.scheduler import Chunk, Scheduler
from baton.kv.pool import BlockPool
from baton.kv.transfer import KvReceipt
from baton.requests import EngineRequest, Priority, SamplingParams
from tests.engine.conftest import BLOCK


class NoTransfer:
    """A transfer that goes nowhere."""

    def push(self, source_blocks: object, offset: int) -> None:
        pass

    async def finish(self, tokens: int) -> KvReceipt:
        raise AssertionError

    async def abort(self) -> None:
        pass


def make_pool(blocks: int) -> BlockPool:
    return BlockPool(blocks, BLOCK, lambda salt: root_hash("m", salt))


def make_job(arrival: int, length: int, priority: Priority = Priority.NORMAL) -> Job:
    tokens = [10 * arrival + 1] * length
    return Job(
        request=EngineRequest(f"job-{arrival}", tuple(tokens), SamplingParams()),
        owner=f"job-{arrival}",
        order=Order(-priority, arrival),
        seed=0,
        stop_rule=StopRule(frozenset(), 100),
        submitted_s=0.0,
        on_event=lambda item: None,
        tokens=tokens,
    )


def shape(chunks: list[Chunk]) -> list[tuple[int, int, int]]:
    return [(chunk.job.order.arrival, chunk.start, chunk.count) for chunk in chunks]


def step(scheduler: Scheduler) -> list[tuple[int, int, int]]:
    """Schedules and computes one step; every finished prompt or decode yields a token."""
    chunks = scheduler.schedule(0.0)
    for chunk in chunks:
        samples = chunk.samples
        scheduler.complete(chunk)
        if samples:
            chunk.job.tokens.append(5)
    return shape(chunks)


def test_decodes_go_first_and_prefill_takes_the_rest_in_chunks() -> None:
    scheduler = Scheduler(make_pool(64), token_budget=8, max_running=8)
    scheduler.add(make_job(0, 3))
    assert step(scheduler) == [(0, 0, 3)]
    scheduler.add(make_job(1, 12))
    assert step(scheduler) == [(0, 3, 1), (1, 0, 7)]
    assert step(scheduler) == [(0, 4, 1), (1, 7, 5)]
    assert step(scheduler) == [(0, 5, 1), (1, 12, 1)]


def test_higher_priority_prefills_first_then_first_come() -> None:
    scheduler = Scheduler(make_pool(64), token_budget=10, max_running=8)
    scheduler.add(make_job(0, 4, Priority.LOW))
    scheduler.add(make_job(1, 4, Priority.NORMAL))
    scheduler.add(make_job(2, 4, Priority.HIGH))
    scheduler.add(make_job(3, 4, Priority.NORMAL))
    assert step(scheduler) == [(2, 0, 4), (1, 0, 4), (3, 0, 2)]


def test_running_set_is_bounded() -> None:
    scheduler = Scheduler(make_pool(64), token_budget=16, max_running=2)
    for arrival in range(3):
        scheduler.add(make_job(arrival, 2))
    assert step(scheduler) == [(0, 0, 2), (1, 0, 2)]
    assert [job.phase for job in scheduler.jobs()][2] is Phase.WAITING


def test_full_pool_preempts_the_youngest_of_the_lowest_priority() -> None:
    pool = make_pool(7)
    scheduler = Scheduler(pool, token_budget=16, max_running=8)
    jobs = [
        make_job(0, 4, Priority.LOW),
        make_job(1, 4, Priority.HIGH),
        make_job(2, 4, Priority.LOW),
    ]
    for job in jobs:
        scheduler.add(job)
    while scheduler.preemptions == 0:
        step(scheduler)
    assert jobs[2].phase is Phase.WAITING
    assert jobs[0].phase is jobs[1].phase is Phase.DECODING
    pool.audit()


def test_preempted_job_computes_all_its_tokens_again() -> None:
    pool = make_pool(5)
    scheduler = Scheduler(pool, token_budget=32, max_running=8)
    old, young = make_job(0, 7), make_job(1, 7)
    scheduler.add(old)
    scheduler.add(young)
    while scheduler.preemptions == 0:
        step(scheduler)
    before = list(young.tokens)
    scheduler.remove(old)
    scheduler.release(old)
    chunks = scheduler.schedule(0.0)
    assert young.tokens == before
    assert [chunk.job for chunk in chunks] == [young]
    assert chunks[0].start + chunks[0].count == len(before)
    pool.audit()


def test_blocks_under_transfer_are_never_taken() -> None:
    pool = make_pool(4)
    scheduler = Scheduler(pool, token_budget=6, max_running=8)
    decoding, sending = make_job(0, 4, Priority.HIGH), make_job(1, 12, Priority.LOW)
    sending.feed = BlockFeed(NoTransfer(), 0)
    scheduler.add(decoding)
    scheduler.add(sending)
    while scheduler.preemptions == 0:
        step(scheduler)
    assert decoding.phase is Phase.WAITING
    assert sending.holds_lease
    assert pool.table(sending.owner) == tuple(sending.blocks)
    pool.audit()


def test_nobody_overtakes_a_job_that_waits_for_blocks() -> None:
    pool = make_pool(6)
    scheduler = Scheduler(pool, token_budget=64, max_running=8)
    assert pool.reserve("someone", [1] * 8) is not None
    scheduler.add(make_job(0, 20))
    scheduler.add(make_job(1, 2))
    assert step(scheduler) == []
    pool.release("someone")
    assert step(scheduler) == [(0, 0, 20), (1, 0, 2)]


def test_every_job_ends_and_every_block_returns_under_pressure() -> None:
    pool = make_pool(12)
    scheduler = Scheduler(pool, token_budget=9, max_running=6)
    jobs = [make_job(arrival, 3 + 5 * (arrival % 4)) for arrival in range(12)]
    for job in jobs:
        scheduler.add(job)
    for _ in range(1000):
        step(scheduler)
        for job in scheduler.jobs():
            if len(job.tokens) > len(job.request.input_ids) + 12:
                scheduler.remove(job)
                scheduler.release(job)
        pool.audit()
        if not scheduler.jobs():
            break
    assert scheduler.jobs() == []
    assert scheduler.preemptions > 0
    assert pool.counts().owned == 0


def test_lone_decode_that_preempts_itself_is_taken_up_again_at_once() -> None:
    """The engine sleeps after an empty step, so this job would have waited for ever."""
    pool = make_pool(8)
    scheduler = Scheduler(pool, token_budget=64, max_running=8)
    prefix = [3] * (2 * BLOCK)
    assert pool.reserve("other", [*prefix, 4], "") is not None
    job = make_job(1, 0)
    job.tokens = [*prefix, *([9] * (3 * BLOCK - 1))]
    # A peer delivered all of it into blocks of its own, while `other` left the prefix cached.
    grant = pool.reserve("job-1", job.tokens, "")
    assert grant is not None
    pool.commit("other", prefix)
    pool.release("other")
    job.blocks, job.computed = list(grant.block_ids), len(job.tokens)
    job.holds_lease = job.is_prefilled = True
    job.tokens.append(5)
    scheduler.add(job)
    for _ in range(3 * BLOCK):
        if scheduler.preemptions:
            break
        assert step(scheduler)
    assert step(scheduler)
