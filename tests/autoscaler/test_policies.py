"""What the scaling policies decide, case by case and in general."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.traffic import Traffic
from services.autoscaler.state import Decision, Pool, PoolState, Reason
from tests.autoscaler.fleets import COSTS, fleet, slo_policy, threshold_policy, traffic_at


@pytest.mark.parametrize(
    ("state", "replicas", "reason"),
    [
        (PoolState(ready=2), 1, Reason.IDLE),
        (PoolState(ready=1), 1, Reason.STEADY),
        (PoolState(ready=2, queued_requests=16), 3, Reason.QUEUE_LENGTH),
        (PoolState(ready=2, busy_share=0.8), 3, Reason.GPU_UTILIZATION),
        (PoolState(ready=2, busy_share=0.6), 2, Reason.STEADY),
        (PoolState(ready=2, queued_requests=6), 2, Reason.STEADY),
        (PoolState(ready=4, busy_share=0.9), 4, Reason.AT_MAXIMUM),
        (PoolState(ready=0), 1, Reason.BELOW_MINIMUM),
        (PoolState(ready=6), 4, Reason.ABOVE_MAXIMUM),
        (PoolState(ready=2, starting=2, queued_requests=90), 4, Reason.AT_MAXIMUM),
    ],
)
def test_thresholds_move_by_one_within_bounds(
    state: PoolState, replicas: int, reason: Reason
) -> None:
    target = threshold_policy().decide(0.0, fleet(prefill=state)).prefill
    assert (target.replicas, target.reason) == (replicas, reason)


def test_thresholds_wait_between_two_changes() -> None:
    policy, busy = threshold_policy(), fleet(prefill=PoolState(ready=1, busy_share=0.9))
    assert policy.decide(0.0, busy).prefill.replicas == 2
    waiting = fleet(prefill=PoolState(ready=1, starting=1, busy_share=0.9))
    assert policy.decide(5.0, waiting).prefill.reason is Reason.HOLDS
    assert policy.decide(20.0, waiting).prefill.replicas == 3


def test_thresholds_of_decode_go_by_kv_usage() -> None:
    state = PoolState(ready=2, busy_share=1.0, kv_used_share=0.76)
    assert threshold_policy().decide(0.0, fleet(decode=state)).decode.reason is (
        Reason.KV_CACHE_USAGE
    )


def steady(per_s: float, prefill: int, decode: int, seconds: float = 60.0) -> Decision:
    """Returns what the policy decides after a while of steady load on a fleet of a fixed size."""
    policy = slo_policy()
    now_s = 0.0
    decision = policy.decide(now_s, fleet(prefill, decode))
    while now_s < seconds:
        now_s += 5.0
        decision = policy.decide(now_s, fleet(prefill, decode, traffic_at(now_s, per_s)))
    return decision


def test_forecast_sizes_both_pools_under_the_limits() -> None:
    decision = steady(per_s=8.0, prefill=1, decode=1)
    # 1,500 tokens take 0.31 s here, so eight a second are 2.5 workers' work without a queue.
    assert decision.prefill.reason is Reason.FORECAST
    assert 4 <= decision.prefill.replicas <= 5
    assert decision.decode.reason in (Reason.FORECAST, Reason.STEADY)
    assert decision.prefill.numbers["work"] == pytest.approx(2.5, abs=0.1)


def test_more_load_never_needs_fewer_workers() -> None:
    sizes = [steady(per_s, 1, 1) for per_s in (1, 2, 4, 8, 16)]
    prefill = [decision.prefill.replicas for decision in sizes]
    decode = [decision.decode.replicas for decision in sizes]
    assert prefill == sorted(prefill)
    assert decode == sorted(decode)


def test_backlog_adds_as_many_as_it_needs_at_once() -> None:
    state = PoolState(ready=1, queued_requests=300, queued_tokens=450_000, costs=COSTS)
    target = slo_policy().decide(0.0, fleet(prefill=state)).prefill
    assert target.reason is Reason.BACKLOG
    assert target.replicas >= 4


@pytest.mark.parametrize(("kv_used", "replicas"), [(0.3, 1), (0.9, 4)])
def test_waiting_for_blocks_adds_decode_workers_and_waiting_for_a_turn_does_not(
    kv_used: float, replicas: int
) -> None:
    state = PoolState(
        ready=1, queued_requests=24, running_requests=8, kv_used_share=kv_used, costs=COSTS
    )
    assert slo_policy().decide(0.0, fleet(decode=state)).decode.replicas == replicas


def test_backlog_that_is_over_before_a_start_adds_nobody() -> None:
    state = PoolState(ready=2, queued_requests=10, queued_tokens=15_000, costs=COSTS)
    assert slo_policy().decide(0.0, fleet(prefill=state)).prefill.replicas == 2


def test_starting_workers_count() -> None:
    loaded = traffic_at(60.0, 8.0)
    policy = slo_policy()
    policy.decide(0.0, fleet())
    first = policy.decide(60.0, fleet(traffic=loaded)).prefill.replicas
    pending = PoolState(ready=1, starting=first - 1, costs=COSTS)
    second = policy.decide(60.5, fleet(prefill=pending, traffic=traffic_at(60.5, 8.0))).prefill
    assert second.replicas <= first


def test_starts_that_nobody_needs_any_more_are_called_off() -> None:
    policy = slo_policy(cancel_after_s=5.0)
    state = PoolState(ready=1, starting=3, costs=COSTS)
    policy.decide(0.0, fleet(prefill=state))
    target = policy.decide(10.0, fleet(prefill=state)).prefill
    assert (target.replicas, target.reason) == (1, Reason.START_CANCELLED)


def test_pool_shrinks_only_after_it_was_idle_for_the_hold() -> None:
    policy = slo_policy(hold_s=30.0)
    policy.decide(0.0, fleet(4))
    loaded = traffic_at(20.0, 8.0)
    policy.decide(20.0, fleet(4, 1, loaded))
    assert policy.decide(30.0, fleet(4, 1, loaded)).prefill.reason is Reason.HOLDS
    for now_s in (60, 90, 120, 150, 180):
        last = policy.decide(now_s, fleet(4, 1, loaded)).prefill
    assert last.reason is Reason.IDLE
    assert last.replicas < 4


def test_pool_is_not_shrunk_below_what_the_measured_load_fits() -> None:
    policy = slo_policy(hold_s=0.0)
    state = PoolState(ready=4, busy_share=0.7, costs=COSTS)
    target = policy.decide(0.0, fleet(prefill=state)).prefill
    # 0.7 of four workers is 2.8 workers' work: three would be busy for 93 %.
    assert (target.replicas, target.reason) == (4, Reason.UNSAFE_TO_SHRINK)


def test_new_policy_learns_before_it_shrinks() -> None:
    policy = slo_policy(learn_s=100.0, hold_s=0.0)
    assert policy.decide(0.0, fleet(3)).prefill.replicas == 3
    assert policy.decide(99.0, fleet(3)).prefill.replicas == 3
    assert policy.decide(101.0, fleet(3)).prefill.replicas == 1


def test_budget_is_shared_in_proportion_to_the_needs() -> None:
    policy = slo_policy(budget=6)
    policy.decide(0.0, fleet())
    decision = policy.decide(10.0, fleet(traffic=traffic_at(10.0, 60.0)))
    assert decision.prefill.replicas + decision.decode.replicas <= 6
    assert decision.prefill.reason is Reason.BUDGET
    assert min(decision.prefill.replicas, decision.decode.replicas) >= 1


def test_old_figures_change_nothing() -> None:
    decision = slo_policy().decide(0.0, fleet(3, 2, is_fresh=False))
    assert (decision.prefill.replicas, decision.prefill.reason) == (3, Reason.STALE)
    assert decision.decode.replicas == 2


def test_worker_changes_its_role_before_another_one_starts() -> None:
    policy = slo_policy(flips=True, cancel_after_s=1.0)
    policy.decide(0.0, fleet(1, 5))
    decision = policy.decide(10.0, fleet(1, 5, traffic_at(10.0, 8.0, output=1)))
    assert decision.flip_to is Pool.PREFILL
    assert decision.flips >= 1
    assert decision.prefill.reason is Reason.TAKES_OVER
    assert decision.decode.reason is Reason.GIVES_AWAY
    assert 1 <= decision.decode.replicas <= 5 - decision.flips


COUNTS = st.integers(0, 12)
POOLS = st.builds(
    PoolState,
    ready=COUNTS,
    starting=COUNTS,
    draining=COUNTS,
    queued_requests=st.integers(0, 1000),
    queued_tokens=st.integers(0, 2_000_000),
    running_requests=st.integers(0, 500),
    busy_share=st.floats(0, 1),
    kv_used_share=st.floats(0, 1),
    kv_tokens=st.sampled_from([0, 4096, 1_000_000]),
    costs=st.just(COSTS),
)
LOOKS = st.lists(
    st.tuples(st.floats(0.1, 60), POOLS, POOLS, st.integers(0, 500), st.booleans()),
    min_size=1,
    max_size=12,
)


@given(looks=LOOKS, budget=st.integers(2, 20), flips=st.booleans())
def test_targets_keep_to_bounds_and_budget(
    looks: list[tuple[float, PoolState, PoolState, int, bool]], budget: int, flips: bool
) -> None:
    policy = slo_policy(budget=budget, flips=flips)
    now_s, traffic = 0.0, Traffic()
    for elapsed_s, prefill, decode, requests, is_fresh in looks:
        now_s += elapsed_s
        traffic = replace(
            traffic,
            remote_requests=traffic.remote_requests + requests,
            remote_tokens=traffic.remote_tokens + 900 * requests,
        )
        seen = fleet(prefill, decode, traffic, is_fresh=is_fresh)
        decision = policy.decide(now_s, seen)
        grown = 0
        for pool in Pool:
            target, state = decision.target(pool), seen.pool(pool)
            assert 1 <= target.replicas <= 10
            grown += max(0, target.replicas - max(state.replicas, 1))
        wanted = decision.prefill.replicas + decision.decode.replicas
        # Whoever is over the budget already is only never made larger.
        assert not grown or wanted <= max(budget, prefill.replicas + decode.replicas)
        assert decision.flips <= max(prefill.ready, decode.ready)
