"""What workers learn about their own costs, and what outlives them in Redis."""

import random

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from redis.asyncio import Redis

from baton.engine.base import EngineSamples, PrefillSample, StepSample
from baton.latency import TRANSFER_DEFAULTS, TRUSTED_SAMPLES, CostModel
from baton.state import keys
from baton.state.records import StatsReport, WorkerStats, decode_report, encode_report
from baton.telemetry import names
from baton.telemetry.providers import Telemetry
from baton.worker.cost_store import TTL_S, CostStore
from baton.worker.costs import MAX_PAIRS, CostBook
from baton.worker.figures import Figures
from baton.worker.gate import WorkGate
from tests.support.fake_engine import FakeEngine
from tests.support.waiting import eventually
from tests.support.worker_fleet import WorkerFleet, read

LONG = tuple(range(1, 400))


def prefill_samples(count: int, slope: float = 1e-3) -> list[PrefillSample]:
    rng = random.Random(3)
    sizes = [rng.randint(50, 3000) for _ in range(count)]
    return [PrefillSample(size, 0, 0.02 + slope * size) for size in sizes]


def step_samples(count: int) -> list[StepSample]:
    rng = random.Random(4)
    sizes = [rng.randint(1, 60) for _ in range(count)]
    return [StepSample(size, 100 * size, 0.01 + 1e-3 * size) for size in sizes]


def taught(count: int = 200) -> CostBook:
    book = CostBook()
    book.learn(EngineSamples(tuple(prefill_samples(count)), tuple(step_samples(count))))
    return book


def test_book_finds_the_engines_costs() -> None:
    model = taught().model
    assert model.prefill_s(1000, 0) == pytest.approx(1.02, rel=0.05)
    assert model.step_s(20, 2000) == pytest.approx(0.03, rel=0.05)
    assert (model.knows_prefill, model.knows_step) == (True, True)
    assert model.prefill_error < 0.5
    assert not CostBook().model.knows_prefill


def test_engine_that_measures_nothing_leaves_the_defaults() -> None:
    book = CostBook()
    book.learn(EngineSamples())
    assert book.model == CostModel()


def test_pairs_differ_and_unknown_ones_cost_what_all_did() -> None:
    book = CostBook()
    for kv_bytes in range(1_000_000, 30_000_000, 1_000_000):
        book.learn_transfer("near", kv_bytes, 0.001 + kv_bytes * 1e-10)
        book.learn_transfer("far", kv_bytes, 0.01 + kv_bytes * 1e-8)
    model = book.model
    assert model.transfer_s("near", 10_000_000) == pytest.approx(0.002, rel=0.2)
    assert model.transfer_s("far", 10_000_000) == pytest.approx(0.11, rel=0.2)
    assert 0.002 < model.transfer_s("another", 10_000_000) < 0.11


def test_pairs_are_bounded_and_the_latest_stay() -> None:
    book = CostBook()
    for number in range(3 * MAX_PAIRS):
        for _ in range(4):
            book.learn_transfer(f"p{number}", 1000, 0.01)
    assert set(book.model.pairs) == {f"p{n}" for n in range(2 * MAX_PAIRS, 3 * MAX_PAIRS)}


def test_costs_travel_with_the_stats() -> None:
    book = taught()
    book.learn_transfer("p0", 1000, 0.01)
    report = StatsReport("d0", "i", WorkerStats(1.0, costs=book.model))
    assert decode_report(encode_report(report)) == report
    old = b'{"worker_id": "d0", "incarnation": "i", "stats": {"taken_at_s": 1.0}}'
    assert decode_report(old).stats.costs is None


@pytest.mark.parametrize("bad", ["-1", '"x"', "1e999", "null"])
def test_costs_that_make_no_sense_are_refused(bad: str) -> None:
    text = (
        '{"worker_id": "d0", "incarnation": "i", "stats": {"taken_at_s": 1.0, '
        f'"costs": {{"prefill": [1, 2, {bad}]}}}}}}'
    )
    with pytest.raises(ValueError, match=r"prefill|coefficients"):
        decode_report(text.encode())


def test_errors_of_the_fits_are_a_metric() -> None:
    reader = InMemoryMetricReader()
    tracers, meters = TracerProvider(shutdown_on_exit=False), MeterProvider([reader])
    telemetry = Telemetry(tracers.get_tracer("t"), meters.get_meter("t"), meters.shutdown)
    book = taught()
    Figures(FakeEngine(), WorkGate(), book).observe(telemetry)
    data = reader.get_metrics_data()
    assert data is not None
    points = {
        (point.attributes or {})[names.ATTR_COST]: point.value  # type: ignore[union-attr]
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == names.COST_ERROR.name
        for point in metric.data.data_points
    }
    telemetry.shutdown()
    assert points == {"prefill": book.model.prefill_error, "step": book.model.step_error}


async def test_next_worker_of_model_and_device_starts_warm(redis_url: str) -> None:
    async with Redis.from_url(redis_url) as redis:
        await redis.flushall()
        first = taught()
        await CostStore(redis, first, "m", "cpu").exchange()
        assert 0 < await redis.ttl(keys.costs("m", "cpu")) <= TTL_S
        second, stranger = CostBook(), CostBook()
        await CostStore(redis, second, "m", "cpu").exchange()
        await CostStore(redis, stranger, "m", "gpu").exchange()
        assert second.model.prefill == first.model.prefill
        assert second.model.step == first.model.step
        assert second.model.knows_prefill
        assert stranger.model == CostModel()


async def test_own_measurements_are_not_replaced_and_few_are_not_kept(redis_url: str) -> None:
    async with Redis.from_url(redis_url) as redis:
        await redis.flushall()
        await CostStore(redis, taught(TRUSTED_SAMPLES - 1), "m", "cpu").exchange()
        assert not await redis.exists(keys.costs("m", "cpu"))
        await CostStore(redis, taught(), "m", "cpu").exchange()
        slow = CostBook()
        slow.learn(EngineSamples(tuple(prefill_samples(100, slope=0.1))))
        before = slow.model.prefill
        await CostStore(redis, slow, "m", "cpu").exchange()
        assert slow.model.prefill == before
        assert slow.model.knows_step, "what it lacked it took over"


async def test_unreadable_costs_are_skipped(redis_url: str) -> None:
    async with Redis.from_url(redis_url) as redis:
        await redis.flushall()
        await redis.hset(keys.costs("m", "cpu"), mapping={"prefill": "{}", "step": "no JSON"})
        book = CostBook()
        await CostStore(redis, book, "m", "cpu").exchange()
        assert book.model == CostModel()


async def test_worker_publishes_what_its_engine_and_its_transfers_took(
    fleet: WorkerFleet,
) -> None:
    prefill = await fleet.prefill("p0", FakeEngine(blocks=256))
    decode = await fleet.decode("d0", FakeEngine(blocks=256))
    prefill.engine.prefill_samples += prefill_samples(50)
    decode.engine.step_samples += step_samples(50)
    await read(fleet.ask(decode, LONG, [prefill.candidate()]))
    async with Redis.from_url(fleet.config.mesh.redis_url) as redis:

        async def costs_of(name: str) -> CostModel:
            data = await redis.get(keys.stats(name))
            costs = decode_report(data).stats.costs if data else None
            return costs or CostModel()

        async def is_published() -> bool:
            prefills = (await costs_of("p0")).prefill_samples
            return prefills == 50 and (await costs_of("d0")).transfer_samples == 1

        await eventually(is_published)
        decoding = await costs_of("d0")
        assert decoding.knows_step
        assert decoding.transfer != TRANSFER_DEFAULTS


async def test_restarted_worker_predicts_from_its_first_moment(fleet: WorkerFleet) -> None:
    first = await fleet.prefill("p0", FakeEngine())
    first.engine.prefill_samples += prefill_samples(50)
    await eventually(lambda: not first.engine.prefill_samples)
    first.stop.set()
    await first.task
    await fleet.prefill("p1", FakeEngine())
    async with Redis.from_url(fleet.config.mesh.redis_url) as redis:

        async def is_warm() -> bool:
            data = await redis.get(keys.stats("p1"))
            costs = decode_report(data).stats.costs if data else None
            return costs is not None and costs.knows_prefill

        await eventually(is_warm)


def test_the_length_of_answers_is_published() -> None:
    book = CostBook()
    before = book.model.output_tokens
    book.learn_length(2000)
    assert book.model.output_tokens > before
