"""Scenarios small enough to be worked out by hand."""

import pytest

from sim.costs.model import StepCosts
from sim.engine.links import LinkSpec
from sim.workload import SimRequest
from tests.sim.worlds import BLOCK, KV_BYTES, fleet, replay


def test_one_aggregated_request_takes_its_prefill_and_then_its_steps() -> None:
    # 300 tokens in chunks of 128 at 1 ms each, then 4 steps of 10 ms after the first token.
    _, [outcome] = replay(fleet(aggregated=1), [SimRequest(1.0, 300, 5)])
    assert outcome.ttft_s == pytest.approx(0.300)
    assert outcome.ended_s == pytest.approx(1.340)
    assert outcome.tpot_s == pytest.approx(0.010)
    assert outcome.reason == "AGGREGATED"


def test_a_remote_prefill_overlaps_its_transfer_but_for_the_last_chunk() -> None:
    # 512 tokens are 4 chunks of 128 ms; each chunk's 128 kB take 64 ms at 2 MB/s; 5 ms latency.
    spec = fleet(1, 1, link=LinkSpec(bandwidth=2e6, latency_s=5e-3))
    _, [outcome] = replay(spec, [SimRequest(0.0, 512, 3)])
    assert outcome.is_remote
    assert outcome.ttft_s == pytest.approx(0.512 + 128 * KV_BYTES / 2e6 + 5e-3)
    assert outcome.tpot_s == pytest.approx(0.010)


def test_two_transfers_into_one_worker_share_its_network() -> None:
    # Two prefill workers finish 512 tokens at the same time; each has half of the receiver's NIC,
    # so that a chunk takes 64 ms instead of 32.
    spec = fleet(2, 1, link=LinkSpec(bandwidth=4e6, latency_s=0.0), kv_tokens=3200)
    _, outcomes = replay(spec, [SimRequest(0.0, 512, 2), SimRequest(0.0, 512, 2)])
    assert {outcome.prefill_worker for outcome in outcomes} == {"prefill-0", "prefill-1"}
    for outcome in outcomes:
        assert outcome.ttft_s == pytest.approx(0.512 + 2 * 128 * KV_BYTES / 4e6)


def test_a_prefill_beside_a_decode_slows_it_down_on_one_worker() -> None:
    # Decode steps of 10 ms; the second prompt's two chunks of 127 and 73 tokens share two steps.
    requests = [SimRequest(0.0, 100, 21), SimRequest(0.105, 200, 1)]
    _, [first, second] = replay(fleet(aggregated=1), requests)
    # First token at 0.1; steps at 0.11, then 0.11 + 10 + 127 ms, then + 10 + 73 ms.
    assert second.ttft_s == pytest.approx(0.330 - 0.105)
    assert first.ended_s == pytest.approx(0.1 + 20 * 0.010 + 0.200)


def test_a_cached_prefix_is_not_computed_again() -> None:
    hashes = tuple(range(20))
    requests = [SimRequest(0.0, 320, 2, hashes), SimRequest(10.0, 320, 2, hashes)]
    _, [first, second] = replay(fleet(aggregated=1), requests)
    # The last block is computed again, since somebody has to compute the last token.
    assert (first.cached_tokens, second.cached_tokens) == (0, 320 - BLOCK)
    assert second.ttft_s == pytest.approx(BLOCK * 1e-3)


def test_steps_grow_with_the_sequences_and_what_they_hold() -> None:
    costs = StepCosts(prefill=(0.0, 1e-3, 0.0), decode=(10e-3, 1e-3, 1e-5))
    _, [outcome] = replay(fleet(aggregated=1, costs=costs), [SimRequest(0.0, 100, 11)])
    # Ten steps of one sequence that holds 101, 102, ... 110 tokens.
    steps_s = sum(10e-3 + 1e-3 + 1e-5 * held for held in range(101, 111))
    assert outcome.ended_s == pytest.approx(0.100 + steps_s)


def test_a_decode_without_room_takes_the_youngest_ones_blocks_and_both_end() -> None:
    # Ten blocks; both prompts fit, both generations do not.
    requests = [SimRequest(0.0, 64, 60), SimRequest(0.01, 64, 60)]
    mesh, outcomes = replay(fleet(aggregated=1, kv_tokens=160), requests)
    assert mesh.decode[0].worker.preemptions > 0
    assert outcomes[0].ended_s < outcomes[1].ended_s
    assert all(outcome.ttft_s is not None for outcome in outcomes)


def test_a_request_that_can_never_fit_is_rejected() -> None:
    _, [outcome] = replay(fleet(aggregated=1, kv_tokens=160), [SimRequest(0.0, 150, 11)])
    assert (outcome.ending, outcome.reason) == ("REJECTED", "TOO_LONG")


def test_short_prompts_stay_on_the_decode_worker() -> None:
    _, [outcome] = replay(fleet(1, 1), [SimRequest(0.0, 100, 2)])
    assert not outcome.is_remote
    assert outcome.reason == "SHORT_PREFILL"


def test_a_full_prefill_queue_sends_prompts_back_to_the_decode_worker() -> None:
    requests = [SimRequest(0.0, 300, 2) for _ in range(40)]
    _, outcomes = replay(fleet(1, 1, kv_tokens=160_000), requests)
    reasons = {outcome.reason for outcome in outcomes}
    assert reasons == {"LONG_PREFILL", "PREFILL_QUEUE_FULL"}
