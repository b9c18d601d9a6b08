"""The cost model follows its samples, whatever the noise, and never predicts nonsense."""

import json
import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.latency import (
    PREFILL_DEFAULTS,
    TRANSFER_DEFAULTS,
    TRUSTED_SAMPLES,
    CostModel,
    LengthMean,
    OnlineFit,
    WorkerCosts,
    prefill_features,
    published,
)

TRUE_COEFFICIENTS = (0.01, 5e-4, 3e-8)
Sample = tuple[tuple[float, float, float], float]


def samples(count: int, seed: int, noise: float = 0.05) -> Iterator[Sample]:
    rng = random.Random(seed)
    for _ in range(count):
        features = prefill_features(rng.randint(16, 8000), rng.choice([0, 0, 512, 4096]))
        exact_s = sum(a * b for a, b in zip(TRUE_COEFFICIENTS, features, strict=True))
        yield features, exact_s * rng.gauss(1, noise)


def fitted(count: int = 1000, outlier_share: float = 0.0) -> OnlineFit:
    fit, rng = OnlineFit(PREFILL_DEFAULTS), random.Random(5)
    for features, seconds in samples(count, seed=1):
        fit.update(features, seconds * (20 if rng.random() < outlier_share else 1))
    return fit


def worst_error(fit: OnlineFit, factor: float = 1.0) -> float:
    return max(abs(fit.predict(x) / (factor * s) - 1) for x, s in samples(200, seed=2, noise=0))


def test_defaults_are_declared_before_the_first_sample() -> None:
    fit = OnlineFit((0.5, 0.25))
    assert fit.predict((1.0, 2.0)) == 1.0
    assert fit.coefficients == (0.5, 0.25)


def test_fit_finds_the_costs_behind_noise() -> None:
    fit = fitted()
    assert worst_error(fit) < 0.1
    assert 0.02 < fit.error < 0.08


@pytest.mark.parametrize("tokens", [(64,), (2048,), (64, 4096)])
@pytest.mark.parametrize("each_s", [1e-3, 1e-7])
def test_fit_finds_costs_far_below_the_declared_ones(
    tokens: tuple[int, ...], each_s: float
) -> None:
    """A step towards each sample, cut off at zero, stayed up to 80 times too high for ever."""
    fit, rng = OnlineFit(PREFILL_DEFAULTS), random.Random(5)
    for _ in range(TRUSTED_SAMPLES):
        fit.update(prefill_features(rng.choice(tokens), 0), each_s * rng.uniform(0.9, 1.1))
    for count in tokens:
        expected = pytest.approx(max(each_s, 1e-6), rel=0.1)
        assert fit.predict(prefill_features(count, 0)) == expected


def test_fit_withstands_outliers() -> None:
    assert worst_error(fitted(outlier_share=0.05)) < 0.1


def test_fit_follows_a_worker_that_became_slower() -> None:
    fit = fitted()
    for features, seconds in samples(600, seed=3):
        fit.update(features, 2 * seconds)
    assert worst_error(fit, factor=2) < 0.15


def test_warm_start_continues_where_it_stopped() -> None:
    fit = fitted(300)
    stored = json.loads(json.dumps(fit.state()))
    again = OnlineFit.restore(PREFILL_DEFAULTS, stored)
    for features, seconds in samples(50, seed=4):
        fit.update(features, seconds)
        again.update(features, seconds)
    assert again.coefficients == fit.coefficients


def test_state_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="another model"):
        OnlineFit.restore((1.0, 1.0), OnlineFit(PREFILL_DEFAULTS).state())


@given(
    st.lists(
        st.tuples(
            st.integers(1, 100_000),
            st.integers(0, 100_000),
            st.floats(allow_nan=True, allow_infinity=True),
        ),
        max_size=60,
    )
)
def test_no_samples_make_a_negative_or_undefined_cost(
    observed: list[tuple[int, int, float]],
) -> None:
    costs = WorkerCosts()
    for uncached, cached, seconds in observed:
        costs.prefill.update(prefill_features(uncached, cached), seconds)
    assert all(0 <= value < float("inf") for value in costs.prefill.coefficients)
    assert 0 <= costs.prefill_s(1000, 0) < float("inf")


def test_one_repeated_sample_does_not_blow_up() -> None:
    fit = OnlineFit(PREFILL_DEFAULTS)
    for _ in range(20_000):
        fit.update(prefill_features(100, 0), 0.05)
    assert fit.predict(prefill_features(100, 0)) == pytest.approx(0.05, rel=0.01)
    fit.update(prefill_features(4000, 0), 2.0)
    assert all(0 <= value < 1 for value in fit.coefficients)


def test_published_costs_predict_as_the_fit_does() -> None:
    costs = WorkerCosts(prefill=fitted(200))
    model = published(costs, OnlineFit(TRANSFER_DEFAULTS), {})
    for uncached, cached in ((1, 0), (700, 0), (700, 9000)):
        assert model.prefill_s(uncached, cached) == pytest.approx(
            costs.prefill_s(uncached, cached), rel=1e-4
        )
    assert model.step_s(7, 900) == pytest.approx(costs.step_s(7, 900), rel=1e-4)
    assert (model.knows_prefill, model.knows_step) == (True, False)
    assert model.prefill_s(0, 500) == 0


@given(st.integers(0, 50), st.integers(0, 100_000), st.integers(0, 9), st.integers(0, 9_000))
def test_queue_never_gets_shorter_by_more_work(
    requests: int, tokens: int, more_requests: int, more_tokens: int
) -> None:
    model = CostModel()
    assert model.queue_s(0, 0) == 0
    more = model.queue_s(requests + more_requests, tokens + more_tokens)
    assert more >= model.queue_s(requests, tokens)


@pytest.mark.parametrize("bad", [(-1.0, 0.0, 0.0), (float("nan"), 0.0, 0.0)])
def test_cost_that_cannot_be_is_refused(bad: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="coefficients"):
        CostModel(prefill=bad)


def test_the_mean_length_follows_answers_and_no_single_one_decides() -> None:
    length = LengthMean()
    length.add(1)
    assert length.tokens > 100
    for _ in range(400):
        length.add(343)
    assert length.tokens == pytest.approx(343, rel=0.02)
    for _ in range(1000):
        length.add(20)
    assert length.tokens == pytest.approx(20, rel=0.4)


def test_a_queue_whose_pairs_are_known_takes_what_its_prompts_take() -> None:
    model = CostModel(prefill=(0.01, 1e-4, 1e-8))
    prompts = [(300, 0), (20_000, 512), (64, 4096)]
    tokens = sum(uncached for uncached, _ in prompts)
    pairs = sum(prefill_features(*prompt)[2] for prompt in prompts)
    alone_s = sum(model.prefill_s(*prompt) for prompt in prompts)
    assert model.queue_s(len(prompts), tokens, pairs) == pytest.approx(alone_s)
    # Without them nobody can know that one of the three is long.
    assert model.queue_s(len(prompts), tokens) < 0.9 * alone_s
