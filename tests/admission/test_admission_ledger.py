"""What permits amount to: averages, backlog and the learned distributions are sound."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.latency import OUTPUT_TOKENS, TRUSTED_SAMPLES, CostModel
from baton.requests import Priority
from services.admission.averages import MovingAverage, PoolTime, Ratio, TokenClock, WorkRate
from services.admission.ledger import Permit, PermitLedger, Pools
from services.admission.lengths import Lengths, OutputLengths
from services.admission.policies.queue_estimate import predict_ttft_s
from services.admission.policy import DecodePool, PermitRequest, Streams

COSTS = CostModel(
    prefill=(0.0, 0.001, 0.0),
    step=(0.01, 0.0, 0.0),
    prefill_samples=TRUSTED_SAMPLES,
    step_samples=TRUSTED_SAMPLES,
)


def ledger_with(prefill: int = 1, decode: int = 1, costs: CostModel = COSTS) -> PermitLedger:
    ledger = PermitLedger()
    ledger.set_pools(0.0, Pools(prefill, DecodePool(decode, costs), costs))
    return ledger


def prompt(tokens: int, priority: Priority = Priority.NORMAL) -> PermitRequest:
    return PermitRequest("r", priority=priority, prompt_tokens=tokens, uncached_tokens=tokens)


def test_prompts_take_the_workers_time_whoever_has_it() -> None:
    time = PoolTime()
    time.share(0.0, own=4, running=4, workers=2)
    time.share(3.0, own=1, running=1, workers=2)
    time.read(4.0)
    assert (time.busy_s, time.full_s) == (pytest.approx(2 * 3.0 + 1.0), pytest.approx(2 * 3.0))


def test_others_prompts_take_their_part_of_the_workers() -> None:
    time = PoolTime()
    time.share(0.0, own=1, running=4, workers=2)
    time.read(2.0)
    assert time.busy_s == pytest.approx(1.0)


def test_prompts_that_overtake_do_not_make_all_prompts_look_cheap() -> None:
    """High priority is computed at once while a crowd of low waits for minutes."""
    ledger = ledger_with()
    waiting = [ledger.grant(prompt(1000, Priority.LOW), 0.0) for _ in range(20)]
    for second in range(100):
        permit = ledger.grant(prompt(1000, Priority.HIGH), second)
        ledger.prefill_done(permit, second + 1.0)
        ledger.release(permit, second + 1.0)
    assert ledger.work_s(prompt(1000)) == pytest.approx(1.0, rel=0.05)
    assert ledger.load(100.0).prefill_s == pytest.approx(1.0, rel=0.05)
    for permit in waiting:
        ledger.release(permit, 100.0)


def learned_with(costs: CostModel) -> PermitLedger:
    """A ledger that saw prompts of 1,000 tokens take a second and tokens 20 ms, told `costs`."""
    ledger = ledger_with(costs=costs)
    for second in range(60):
        running = [ledger.grant(prompt(1000), 2.0 * second) for _ in range(2)]
        for index, permit in enumerate(running):
            ledger.prefill_done(permit, 2.0 * second + index + 1.0)
            ledger.release(permit, 2.0 * second + index + 1.0 + 100 * 0.02, output_tokens=101)
    return ledger


@pytest.mark.parametrize("factor", [0.25, 0.5, 2.0])
def test_better_costs_do_not_meet_the_correction_of_worse_ones(factor: float) -> None:
    """As at the start of a mesh, when declared costs give way to measured ones."""
    worse = CostModel(
        prefill=(0.0, 0.001 * factor, 0.0),
        step=(0.02 * factor, 0.0, 0.0),
        prefill_samples=TRUSTED_SAMPLES,
        step_samples=TRUSTED_SAMPLES,
    )
    right = replace(worse, prefill=(0.0, 0.001, 0.0), step=(0.02, 0.0, 0.0))
    ledger = learned_with(worse)
    before_s = ledger.work_s(prompt(1000)), ledger.decode_pool.tpot_s(Streams(1, 1000))
    ledger.set_pools(130.0, Pools(1, DecodePool(1, right), right))
    after_s = ledger.work_s(prompt(1000)), ledger.decode_pool.tpot_s(Streams(1, 1000))
    assert after_s == pytest.approx(before_s, rel=0.02)


def test_average_prefill_time_does_not_count_the_queue() -> None:
    """Bursts of 16 prompts of 50 ms each on one worker cost 50 ms each, waiting not included."""
    ledger = ledger_with()
    now_s = 0.0
    for _ in range(6):
        permits = [ledger.grant(prompt(50), now_s) for _ in range(16)]
        for permit in permits:
            now_s += 0.05
            ledger.prefill_done(permit, now_s)
        for permit in permits:
            ledger.release(permit, now_s)
    assert ledger.load(now_s).prefill_s == pytest.approx(0.05, rel=0.7)
    for _ in range(15):
        ledger.grant(prompt(50), now_s)
    load = ledger.load(now_s)
    assert predict_ttft_s(load) < 15 * 0.05 * 1.7 < 2.0
    assert load.backlog_s == pytest.approx(15 * 0.05, rel=0.3)


def test_cold_start_and_outliers_do_not_spoil_the_average() -> None:
    average = MovingAverage()
    for _ in range(8):
        average.add(30.0)
    assert average.value == 0.0
    for _ in range(20):
        average.add(0.1)
    average.add(1000.0)
    assert average.value < 0.14


def test_average_follows_a_real_change() -> None:
    average = MovingAverage()
    for _ in range(20):
        average.add(0.1)
    for _ in range(60):
        average.add(2.0)
    assert average.value == pytest.approx(2.0, rel=0.1)


def test_long_samples_decide_by_how_much_predictions_are_off() -> None:
    ratio = Ratio()
    assert ratio.value == 1.0
    for _ in range(50):
        ratio.add(0.02, 0.002)
        ratio.add(3.0, 2.0)
    assert ratio.value == pytest.approx(1.51, abs=0.05)


def test_backlog_shrinks_as_the_workers_compute() -> None:
    ledger = ledger_with()
    first, _second = ledger.grant(prompt(1000), 0.0), ledger.grant(prompt(3000), 0.0)
    assert ledger.load(0.0).backlog_s == pytest.approx(4.0)
    assert ledger.load(0.5).backlog_s == pytest.approx(3.5)
    ledger.prefill_done(first, 1.0)
    assert ledger.load(1.0).backlog_s == pytest.approx(3.0)
    assert ledger.load(99.0).backlog_s == pytest.approx(0.0)


def test_accepted_work_is_forecast_exactly_once() -> None:
    """Waiting, computed, running: at each stage a request counts as one stream to come."""
    ledger = ledger_with()
    for _ in range(40):
        ledger.lengths.add(Priority.NORMAL, 1000)
    permit = ledger.grant(prompt(100), 0.0)
    assert ledger.load(0.0).forecast.at(0.1).sequences == pytest.approx(1.0)
    ledger.prefill_done(permit, 0.1)
    load = ledger.load(0.1)
    assert load.streams == (1, pytest.approx(100, abs=4))
    assert load.forecast.at(0.1).sequences == pytest.approx(1.0)
    ledger.release(permit, 0.2)
    assert ledger.load(0.2).forecast.at(0.1).sequences == 0


def test_streams_that_will_have_ended_are_not_forecast() -> None:
    ledger = ledger_with()
    for tokens in [100] * 32 + [1000] * 32:
        ledger.lengths.add(Priority.NORMAL, tokens)
    for _ in range(10):
        ledger.prefill_done(ledger.grant(prompt(10), 0.0), 0.0)
    assert ledger.load(0.0).forecast.at(0.5).sequences == pytest.approx(10.0)
    assert ledger.load(0.0).forecast.at(2.0).sequences == pytest.approx(5.0)
    # Those that got 200 tokens already are all of the long kind.
    assert ledger.load(2.0).forecast.at(2.0).sequences == pytest.approx(10.0)


def test_a_tokens_real_time_corrects_the_costs() -> None:
    ledger = ledger_with()
    for start_s in range(40):
        permit = ledger.grant(prompt(10), start_s)
        ledger.prefill_done(permit, start_s)
        ledger.release(permit, start_s + 1.0, output_tokens=51)
    assert ledger.decode_pool.tpot_s(Streams(1, 0)) == pytest.approx(0.02, rel=0.05)


def test_ages_are_counted_in_tokens_whatever_the_pace() -> None:
    clock = TokenClock()
    clock.pace(0.0, 0.1)
    clock.pace(1.0, 0.5)
    assert clock.read(2.0) == pytest.approx(10 + 2)


def test_work_rate_forgets() -> None:
    rate = WorkRate(memory_s=10.0)
    for second in range(100):
        rate.add(float(second), 0.5)
    assert rate.read(99.0) == pytest.approx(0.5, rel=0.1)
    assert rate.read(150.0) < 0.01


@given(st.lists(st.integers(1, 500), min_size=32, max_size=200), st.floats(0, 600))
def test_survival_is_that_of_the_samples(samples: list[int], age: float) -> None:
    lengths = Lengths()
    for tokens in samples:
        lengths.add(tokens)
    lengths.refresh()
    longer = sum(tokens > age for tokens in samples) / len(samples)
    assert lengths.survival(age) == pytest.approx(longer)
    if age > 0:
        mean = sum(min(tokens, age) for tokens in samples) / len(samples) / age
        assert lengths.mean_survival(age) == pytest.approx(mean)


def test_unknown_classes_borrow_from_all_and_all_from_the_usual() -> None:
    lengths = OutputLengths()
    assert lengths.of(Priority.LOW).mean == OUTPUT_TOKENS
    rng = random.Random(1)
    for _ in range(40):
        lengths.add(Priority.NORMAL, rng.randint(10, 30))
    assert lengths.of(Priority.LOW).mean == pytest.approx(20, rel=0.2)
    for _ in range(40):
        lengths.add(Priority.LOW, 500)
    assert lengths.of(Priority.LOW).mean == 500
    assert lengths.of(Priority.NORMAL).quantile(0.9) <= 30


def test_permits_are_counted_where_they_stand() -> None:
    ledger = ledger_with(decode=2)
    permits: list[Permit] = [ledger.grant(prompt(10), 0.0) for _ in range(3)]
    ledger.prefill_done(permits[0], 0.1)
    ledger.prefill_done(permits[0], 0.2)
    load = ledger.load(0.2)
    assert (load.prefill_permits, load.decode_permits, ledger.permits) == (2, 1, 3)
    for permit in permits:
        ledger.release(permit, 0.3)
    assert ledger.permits == 0
    assert ledger.load(0.3).backlog_s == 0
