"""The cost in seconds: each term by itself, the choice that follows, and what always holds."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.latency import OUTPUT_TOKENS, TRUSTED_SAMPLES, CostModel
from services.router.policies.latency import (
    EXPLORE_SHARE,
    SLO_SHARE,
    LatencyPolicy,
    LatencySettings,
)
from services.router.policies.load import LeastLoadedPolicy, PowerOfTwoPolicy
from services.router.policies.terms import idle_and_slow, rank_decodes, rank_prefills
from services.router.policy import (
    MAX_PREFILL_CANDIDATES,
    Decision,
    DecodeView,
    PrefillView,
    RouteRequest,
    RoutingPolicy,
)

# Round coefficients: a prompt is 0.01 s + 1 ms a token, a step 10 ms + 1 ms a stream.
COSTS = CostModel(
    prefill=(0.01, 1e-3, 0.0),
    step=(0.01, 1e-3, 0.0),
    transfer=(0.002, 1e-9),
    pairs={"near": (0.0, 0.0), "far": (0.5, 0.0)},
    prefill_samples=TRUSTED_SAMPLES,
    step_samples=TRUSTED_SAMPLES,
)
SETTINGS = LatencySettings(tpot_price=10.0, chunk_tokens=256)
PROMPT = RouteRequest(1000, kv_bytes_per_token=1000)


def policy(seed: int = 1) -> LatencyPolicy:
    return LatencyPolicy(SETTINGS, random.Random(seed))


def decode(name: str, costs: CostModel = COSTS, **fields: float) -> DecodeView:
    return DecodeView(name, f"i-{name}", f"{name}:1", costs=costs, **fields)  # type: ignore[arg-type]


def prefill(name: str, costs: CostModel = COSTS, **fields: float) -> PrefillView:
    return PrefillView(name, f"i-{name}", f"{name}:1", costs=costs, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("view", "term", "expected"),
    [
        pytest.param(prefill("p"), "prefill_s", 1.01, id="whole prompt"),
        pytest.param(prefill("p", cached_tokens=600), "prefill_s", 0.41, id="cached part"),
        pytest.param(prefill("p", cached_tokens=1000), "prefill_s", 0.011, id="last token"),
        pytest.param(prefill("p"), "wait_s", 0.0, id="nobody waits"),
        pytest.param(
            prefill("p", queue_length=2, queued_tokens=500), "wait_s", 0.52, id="two prompts wait"
        ),
        pytest.param(prefill("p"), "transfer_s", 0.003, id="all bytes"),
        pytest.param(prefill("near"), "transfer_s", 0.0, id="near pair"),
        pytest.param(prefill("far"), "transfer_s", 0.5, id="far pair"),
    ],
)
def test_terms_of_a_remote_prefill(view: PrefillView, term: str, expected: float) -> None:
    option = policy().evaluate(PROMPT, view, decode("d"))
    assert getattr(option.terms, term) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("fields", "term", "expected"),
    [
        ({}, "tpot_s", 0.011),
        ({"decode_load": 9}, "tpot_s", 0.02),
        ({}, "admit_s", 0.0),
        ({"decode_load": 9}, "admit_s", 0.0),
        ({"decode_load": 9, "kv_free_tokens": 1000}, "admit_s", 0.0),
        (
            {"decode_load": 9, "kv_free_tokens": 500, "resident_tokens": 2000},
            "admit_s",
            0.019 * OUTPUT_TOKENS / 4,
        ),
        ({"cached_tokens": 400}, "transfer_s", 0.0026),
    ],
)
def test_terms_of_a_decode_worker(fields: dict[str, int], term: str, expected: float) -> None:
    option = policy().evaluate(PROMPT, prefill("p"), decode("d", **fields))
    assert getattr(option.terms, term) == pytest.approx(expected)


def test_terms_of_a_local_prefill() -> None:
    view = decode("d", decode_load=4, queue_length=1, queued_tokens=100, cached_tokens=400)
    terms = policy().evaluate(PROMPT, None, view).terms
    assert terms.wait_s == pytest.approx(0.11)
    # Three chunks of up to 256 tokens, each with a step of the four streams.
    assert terms.prefill_s == pytest.approx(0.61 + 3 * 0.014)
    assert terms.admit_s == pytest.approx(0.014 / 2)
    assert terms.transfer_s == 0
    assert terms.interference_s == pytest.approx(10 * 4 * 0.61 / OUTPUT_TOKENS)


def choose(
    prefills: Sequence[PrefillView],
    decodes: Sequence[DecodeView],
    request: RouteRequest = PROMPT,
    seed: int = 1,
) -> Decision:
    return policy(seed).choose(request, prefills, decodes)


def test_decision_carries_its_reasons() -> None:
    decision = choose([prefill("p0"), prefill("p1", queue_length=3)], [decode("d", decode_load=9)])
    chosen = decision.chosen
    assert chosen is not None
    assert chosen.prefill is not None
    assert chosen.prefill.worker_id == "p0"
    assert [it.worker_id for it in decision.prefill_candidates] == ["p0", "p1"]
    assert [it.cost_s for it in decision.options] == sorted(it.cost_s for it in decision.options)
    assert len(decision.options) == 3
    assert chosen in decision.options


def test_idle_decode_worker_computes_by_itself_and_a_busy_one_does_not() -> None:
    idle = choose([prefill("p")], [decode("d")]).chosen
    busy = choose([prefill("p")], [decode("d", decode_load=8)]).chosen
    assert idle is not None
    assert idle.prefill is None
    assert busy is not None
    assert busy.prefill is not None


def test_prefix_attracts_until_its_holder_is_busier_than_recomputing_costs() -> None:
    decodes = [decode("d", decode_load=30)]
    other = prefill("other")
    sticky = prefill("holder", cached_tokens=900, queue_length=1, queued_tokens=600)
    saturated = replace(sticky, queued_tokens=1000)
    assert choose([sticky, other], decodes).prefill_candidates[0].worker_id == "holder"
    assert choose([saturated, other], decodes).prefill_candidates[0].worker_id == "other"


def test_prefix_that_every_request_shares_does_not_pull_the_fleet_to_one_worker() -> None:
    """A burst of 80 prompts of which one worker holds 20 %; each placement adds to the queues."""
    queues: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    names = [f"p{number}" for number in range(8)]
    holders = {"p0"}
    router = policy()
    for _ in range(80):
        views = [
            prefill(
                name,
                queue_length=queues[name],
                queued_tokens=tokens[name],
                cached_tokens=200 if name in holders else 0,
            )
            for name in names
        ]
        settings_free = [replace(view, queue_length=min(view.queue_length, 15)) for view in views]
        decision = router.choose(PROMPT, settings_free, [decode("d", decode_load=30)])
        best = decision.prefill_candidates[0]
        queues[best.worker_id] += 1
        tokens[best.worker_id] += 1000 - best.cached_tokens
        holders.add(best.worker_id)
    assert max(queues.values()) <= 1.3 * min(queues.values())


def test_pair_is_chosen_jointly() -> None:
    """The worker that is best by itself loses when its way to the decode worker is long."""
    decodes = [decode("d", decode_load=20)]
    decision = choose([prefill("far"), prefill("p", queue_length=1, queued_tokens=100)], decodes)
    assert decision.prefill_candidates[0].worker_id == "p"


def test_near_ties_fall_on_all_workers() -> None:
    decodes = [decode(f"d{number}", decode_load=9) for number in range(12)]
    router = policy()
    winners = {router.choose(PROMPT, [], decodes).decode.worker_id for _ in range(300)}
    assert len(winners) == 12


@pytest.mark.parametrize(
    ("ttft_slo_s", "expected"),
    [
        pytest.param(None, "idle", id="none: the lowest cost"),
        pytest.param(10.0, "full", id="loose: the fullest"),
        pytest.param(2.5, "mid", id="tighter: the fullest that meets it"),
        pytest.param(1.0, "idle", id="impossible: the lowest cost"),
    ],
)
def test_slo_is_met_by_the_best_fit(ttft_slo_s: float | None, expected: str) -> None:
    views = [
        prefill("idle"),
        prefill("mid", queue_length=1, queued_tokens=1000),
        prefill("full", queue_length=3, queued_tokens=3000),
    ]
    request = replace(PROMPT, ttft_slo_s=ttft_slo_s)
    decodes = [decode("d", decode_load=40, queue_length=15, queued_tokens=90_000)]
    assert choose(views, decodes, request).prefill_candidates[0].worker_id == expected


def test_tpot_slo_keeps_a_request_from_a_full_decode_worker() -> None:
    decodes = [decode("full", decode_load=60, cached_tokens=990), decode("idle", decode_load=2)]
    request = replace(PROMPT, tpot_slo_s=0.05)
    assert choose([prefill("p")], decodes, request).decode.worker_id == "idle"
    terms = choose([prefill("p")], decodes, request).chosen
    assert terms is not None
    assert terms.terms.tpot_s <= SLO_SHARE * 0.05


def test_session_stays_unless_that_costs_too_much() -> None:
    request = replace(PROMPT, preferred_decode="own")
    near = [decode("own", decode_load=4), decode("other", decode_load=3)]
    assert {choose([], near, request, seed).decode.worker_id for seed in range(9)} == {"own"}
    far = [decode("own", decode_load=60), decode("other", decode_load=3)]
    assert choose([], far, request).decode.worker_id == "other"
    meets = replace(request, ttft_slo_s=5.0)
    fuller = [decode("own", decode_load=4), decode("other", decode_load=40)]
    assert choose([], fuller, meets).decode.worker_id == "own"
    assert choose([], fuller, replace(meets, preferred_decode="")).decode.worker_id == "other"
    gone = [decode("other")]
    assert choose([], gone, request).decode.worker_id == "other"


@pytest.mark.parametrize(("tokens", "is_remote"), [(256, False), (257, True)])
def test_unmeasured_fleet_goes_by_the_chapters_rule(tokens: int, is_remote: bool) -> None:
    unmeasured = CostModel()
    decision = choose(
        [prefill("p", unmeasured)], [decode("d", unmeasured)], RouteRequest(tokens, 1000)
    )
    assert decision.chosen is not None
    assert (decision.chosen.prefill is not None) is is_remote
    assert [it.worker_id for it in decision.prefill_candidates] == ["p"]


def test_full_prefill_workers_leave_local_prefill() -> None:
    full = prefill("p", queue_length=SETTINGS.prefill_queue_max)
    decision = choose([full], [decode("d", decode_load=30)])
    assert decision.chosen is not None
    assert decision.chosen.prefill is None


SLOW_COSTS = replace(COSTS, prefill=(0.1, 1e-2, 0.0), step=(0.1, 1e-3, 0.0))


@pytest.mark.parametrize(
    ("slow", "request_", "is_explored"),
    [
        pytest.param({}, PROMPT, True, id="idle"),
        pytest.param({"decode_load": 1}, PROMPT, False, id="busy"),
        pytest.param({"is_suspect": True}, PROMPT, False, id="suspect"),
        pytest.param({}, replace(PROMPT, ttft_slo_s=9.0), False, id="request with a target"),
    ],
)
def test_worker_that_was_slow_is_measured_again_now_and_then(
    slow: dict[str, float], request_: RouteRequest, is_explored: bool
) -> None:
    router = policy()
    fleet = [decode("a"), decode("b"), decode("slow", SLOW_COSTS, **slow)]
    chosen = Counter(router.choose(request_, [], fleet).decode.worker_id for _ in range(2000))
    share = chosen["slow"] / 2000
    assert (EXPLORE_SHARE / 2 < share < 2 * EXPLORE_SHARE) if is_explored else share == 0


def test_workers_that_are_alike_are_not_explored() -> None:
    fleet = [decode("a"), decode("b", replace(COSTS, step=(0.012, 1e-3, 0.0))), decode("c")]
    assert idle_and_slow(fleet) == []
    fronts = [prefill("p"), prefill("q", SLOW_COSTS)]
    assert [view.worker_id for view in idle_and_slow(fronts)] == ["q"]


def test_least_loaded_and_power_of_two_compare_loads() -> None:
    decodes = [decode("a", decode_load=3, queue_length=2), decode("b", decode_load=4)]
    prefills = [prefill("busy", queue_length=3), prefill("free")]
    for kind in (LeastLoadedPolicy, PowerOfTwoPolicy):
        decision = kind(random.Random(1)).choose(PROMPT, prefills, decodes)
        assert decision.decode.worker_id == "b"
        assert [it.worker_id for it in decision.prefill_candidates] == ["free", "busy"]


def test_power_of_two_looks_at_two() -> None:
    decodes = [decode(str(number), decode_load=number) for number in range(10)]
    router = PowerOfTwoPolicy(random.Random(1))
    winners = {router.choose(PROMPT, [], decodes).decode.worker_id for _ in range(500)}
    assert winners == {str(number) for number in range(9)}


SHARED = {
    "incarnation": st.just("i"),
    "address": st.just("a:1"),
    "queue_length": st.integers(0, 20),
    "queued_tokens": st.integers(0, 20_000),
    "queued_pairs": st.none() | st.floats(0, 1e9),
    "cached_tokens": st.integers(0, 3000),
    "stats_age_s": st.one_of(st.floats(0, 10), st.just(float("inf"))),
    "is_draining": st.booleans(),
    "is_suspect": st.booleans(),
    "costs": st.sampled_from([COSTS, CostModel(), replace(COSTS, prefill=(0.1, 1e-2, 1e-7))]),
}
PREFILLS = st.lists(st.builds(PrefillView, worker_id=st.uuids().map(str), **SHARED), max_size=9)
DECODES = st.lists(
    st.builds(
        DecodeView,
        worker_id=st.uuids().map(str),
        decode_load=st.integers(0, 80),
        resident_tokens=st.integers(0, 90_000),
        kv_free_tokens=st.none() | st.integers(0, 9000),
        **SHARED,
    ),
    min_size=1,
    max_size=9,
)
REQUESTS = st.builds(
    RouteRequest,
    prompt_tokens=st.integers(1, 4000),
    kv_bytes_per_token=st.just(1000),
    ttft_slo_s=st.none() | st.floats(0.01, 10),
    tpot_slo_s=st.none() | st.floats(0.001, 1),
)
KINDS = ("latency", "least_loaded", "power_of_two")


def make(kind: str, seed: int) -> RoutingPolicy:
    rng = random.Random(seed)
    if kind == "latency":
        return LatencyPolicy(SETTINGS, rng)
    return LeastLoadedPolicy(rng) if kind == "least_loaded" else PowerOfTwoPolicy(rng)


def is_healthy(view: PrefillView | DecodeView) -> bool:
    return not (view.is_draining or view.is_suspect or view.stats_age_s > 3.0)


@pytest.mark.parametrize("kind", KINDS)
@given(prefills=PREFILLS, decodes=DECODES, request_=REQUESTS, seed=st.integers())
def test_choice_is_sound_for_every_fleet(
    kind: str,
    prefills: Sequence[PrefillView],
    decodes: Sequence[DecodeView],
    request_: RouteRequest,
    seed: int,
) -> None:
    decision = make(kind, seed).choose(request_, prefills, decodes)
    assert decision.decode in decodes
    assert all(view in prefills for view in decision.prefill_candidates)
    assert len(set(decision.prefill_candidates)) == len(decision.prefill_candidates)
    assert len(decision.prefill_candidates) <= MAX_PREFILL_CANDIDATES
    assert bool(decision.prefill_candidates) == bool(prefills)
    if any(map(is_healthy, decodes)):
        assert is_healthy(decision.decode)
    if any(map(is_healthy, prefills)):
        assert all(map(is_healthy, decision.prefill_candidates))
    if decision.chosen is not None and decision.chosen.prefill is not None:
        assert decision.chosen.prefill is decision.prefill_candidates[0]
    assert make(kind, seed).choose(request_, prefills, decodes) == decision


@given(prefills=PREFILLS, decodes=DECODES, request_=REQUESTS)
def test_ranking_the_whole_width_says_what_evaluating_says(
    prefills: Sequence[PrefillView], decodes: Sequence[DecodeView], request_: RouteRequest
) -> None:
    router = policy()
    ranked = rank_decodes(request_, decodes, SETTINGS.tpot_price, SETTINGS.chunk_tokens)
    for cost_s, view in ranked.computing:
        assert cost_s == pytest.approx(router.evaluate(request_, None, view).cost_s)
    stranger = prefill("stranger")
    for cost_s, view in ranked.receiving:
        terms = router.evaluate(request_, stranger, view).terms
        back_s = terms.transfer_s + terms.admit_s + SETTINGS.tpot_price * terms.tpot_s
        assert cost_s == pytest.approx(back_s)
    for cost_s, front in rank_prefills(request_, prefills):
        terms = router.evaluate(request_, front, decodes[0]).terms
        assert cost_s == pytest.approx(terms.wait_s + terms.prefill_s)


@given(
    view=DECODES.map(lambda views: views[0]),
    front=st.none() | st.builds(PrefillView, worker_id=st.just("p"), **SHARED),
    request_=REQUESTS,
    field=st.sampled_from(["queue_length", "queued_tokens", "decode_load", "resident_tokens"]),
    more=st.integers(0, 5000),
)
def test_more_load_never_makes_a_worker_more_attractive(
    view: DecodeView,
    front: PrefillView | None,
    request_: RouteRequest,
    field: str,
    more: int,
) -> None:
    if field == "resident_tokens":
        view = replace(view, kv_free_tokens=None)
    before = policy().evaluate(request_, front, view).cost_s
    loaded = replace(view, **{field: getattr(view, field) + more})
    assert policy().evaluate(request_, front, loaded).cost_s >= before
    if front is not None and field in ("queue_length", "queued_tokens"):
        busier = replace(front, **{field: getattr(front, field) + more})
        assert policy().evaluate(request_, busier, view).cost_s >= before
