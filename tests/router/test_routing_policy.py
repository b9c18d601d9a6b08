"""Where requests go: the chapter's score row by row, and what holds for every fleet."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.policy import (
    MAX_PREFILL_CANDIDATES,
    DecodeView,
    PrefillView,
    RoundRobinPolicy,
    RouteRequest,
    RoutingPolicy,
    ScoreWeights,
    WeightedPolicy,
)


def weighted(seed: int = 1, **weights: float) -> WeightedPolicy:
    return WeightedPolicy(ScoreWeights(**weights), random.Random(seed))  # type: ignore[arg-type]


def decode(name: str, **fields: float) -> DecodeView:
    return DecodeView(name, f"i-{name}", f"{name}:1", **fields)  # type: ignore[arg-type]


def prefill(name: str, **fields: float) -> PrefillView:
    return PrefillView(name, f"i-{name}", f"{name}:1", **fields)  # type: ignore[arg-type]


def winner(policy: RoutingPolicy, *views: DecodeView, prompt_tokens: int = 100) -> str:
    return policy.choose(RouteRequest(prompt_tokens), [], views).decode.worker_id


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        pytest.param([decode("a", queue_length=1), decode("b")], "b", id="shorter queue"),
        pytest.param([decode("a", decode_load=1), decode("b")], "b", id="lower load"),
        pytest.param([decode("a", cached_tokens=80), decode("b")], "a", id="cached prefix"),
        pytest.param(
            [decode("a", cached_tokens=74, decode_load=1), decode("b")], "b", id="too little cached"
        ),
        pytest.param(
            [decode("a", cached_tokens=100, queue_length=6), decode("b")],
            "a",
            id="10 points for the prefix beat 9 for the queue",
        ),
        pytest.param(
            [decode("a", cached_tokens=100, queue_length=7), decode("b")],
            "b",
            id="10.5 points for the queue beat the prefix",
        ),
        pytest.param(
            [decode("a", queue_length=1), decode("b", decode_load=4)],
            "a",
            id="a waiting one weighs as three running ones",
        ),
        pytest.param(
            [decode("a", is_draining=True), decode("b", queue_length=99)], "b", id="drain"
        ),
        pytest.param([decode("a", stats_age_s=4), decode("b", queue_length=99)], "b", id="stale"),
        pytest.param(
            [decode("a", is_suspect=True), decode("b", queue_length=9)], "b", id="suspect"
        ),
        pytest.param(
            [decode("a", is_draining=True), decode("b", stats_age_s=9)], "b", id="doubtful"
        ),
        pytest.param([decode("a", is_draining=True)], "a", id="nobody else"),
    ],
)
def test_weighted_score_picks(views: list[DecodeView], expected: str) -> None:
    assert winner(weighted(), *views) == expected
    assert winner(weighted(), *reversed(views)) == expected


def test_prefill_candidates_come_best_first() -> None:
    views = [
        prefill("busy", queue_length=9),
        prefill("holder", cached_tokens=90),
        prefill("idle"),
        prefill("some", queue_length=1),
    ]
    decision = weighted().choose(RouteRequest(100), views, [decode("d")])
    assert [view.worker_id for view in decision.prefill_candidates] == ["holder", "idle", "some"]
    assert [score.total for score in decision.prefill_scores] == [9.0, 0.0, -1.5, -13.5]


def test_hotspot_loses_its_bonus_beyond_what_it_is_worth() -> None:
    views = [prefill("holder", cached_tokens=100, queue_length=7), prefill("mid", queue_length=5)]
    least = prefill("least")
    request = RouteRequest(100)
    prevented = weighted().choose(request, [*views, least], [decode("d")])
    assert [it.worker_id for it in prevented.prefill_candidates] == ["least", "mid", "holder"]
    assert prevented.prefill_scores[-1].is_hotspot
    policy = weighted(enable_hotspot_prevention=False)
    allowed = policy.choose(request, [*views, least], [decode("d")])
    assert [it.worker_id for it in allowed.prefill_candidates] == ["least", "holder", "mid"]


def test_ties_do_not_always_fall_on_the_first_worker() -> None:
    policy = weighted()
    winners = {winner(policy, decode("a"), decode("b"), decode("c")) for _ in range(50)}
    assert winners == {"a", "b", "c"}


def test_round_robin_takes_each_in_turn() -> None:
    policy = RoundRobinPolicy()
    prefills = [prefill("p0"), prefill("p1")]
    decodes = [decode("d0"), decode("d1", is_draining=True), decode("d2")]
    decisions = [policy.choose(RouteRequest(8), prefills, decodes) for _ in range(4)]
    assert [it.decode.worker_id for it in decisions] == ["d0", "d2", "d0", "d2"]
    assert [it.prefill_candidates[0].worker_id for it in decisions] == ["p0", "p1", "p0", "p1"]


VIEW_FIELDS = {
    "incarnation": st.just("i"),
    "address": st.just("a:1"),
    "queue_length": st.integers(0, 50),
    "cached_tokens": st.integers(0, 200),
    "stats_age_s": st.one_of(st.floats(0, 10), st.just(float("inf"))),
    "is_draining": st.booleans(),
    "is_suspect": st.booleans(),
}
PREFILLS = st.lists(
    st.builds(PrefillView, worker_id=st.uuids().map(str), **VIEW_FIELDS), max_size=6
)
DECODES = st.lists(
    st.builds(
        DecodeView, worker_id=st.uuids().map(str), decode_load=st.integers(0, 80), **VIEW_FIELDS
    ),
    min_size=1,
    max_size=6,
)


def is_healthy(view: PrefillView | DecodeView) -> bool:
    return not (view.is_draining or view.is_suspect or view.stats_age_s > 3.0)


@pytest.mark.parametrize("kind", ["weighted", "round_robin"])
@given(prefills=PREFILLS, decodes=DECODES, prompt=st.integers(1, 300), seed=st.integers())
def test_choice_is_sound_for_every_fleet(
    kind: str,
    prefills: Sequence[PrefillView],
    decodes: Sequence[DecodeView],
    prompt: int,
    seed: int,
) -> None:
    def choose() -> tuple[DecodeView, tuple[PrefillView, ...]]:
        policy: RoutingPolicy = weighted(seed) if kind == "weighted" else RoundRobinPolicy()
        decision = policy.choose(RouteRequest(prompt), prefills, decodes)
        return decision.decode, decision.prefill_candidates

    chosen, candidates = choose()
    assert chosen in decodes
    assert all(view in prefills for view in candidates)
    assert len(set(candidates)) == len(candidates) <= MAX_PREFILL_CANDIDATES
    assert bool(candidates) == bool(prefills)
    if any(map(is_healthy, decodes)):
        assert is_healthy(chosen)
    if any(map(is_healthy, prefills)):
        assert all(map(is_healthy, candidates))
    assert choose() == (chosen, candidates)
