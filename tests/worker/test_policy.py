"""The decision between local and remote prefill."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.decode.policy import SplitReason, ThresholdSplitPolicy, should_offload_prefill

POLICY = ThresholdSplitPolicy(prompt_length_threshold=256, prefill_queue_max=4)


@pytest.mark.parametrize(
    ("prompt", "cached", "queues", "candidates", "reason"),
    [
        (257, 0, [0], (0,), SplitReason.LONG_PREFILL),
        (256, 0, [0], (), SplitReason.SHORT_PREFILL),
        (600, 344, [0], (), SplitReason.SHORT_PREFILL),
        (600, 343, [0], (0,), SplitReason.LONG_PREFILL),
        (600, 0, [3], (0,), SplitReason.LONG_PREFILL),
        (600, 0, [4], (), SplitReason.PREFILL_QUEUE_FULL),
        (600, 0, [9, 0, 4, 3], (1, 3), SplitReason.LONG_PREFILL),
        (600, 0, [], (), SplitReason.NO_PREFILL_WORKER),
        (10, 0, [], (), SplitReason.SHORT_PREFILL),
        (10, 0, [9], (), SplitReason.SHORT_PREFILL),
    ],
)
def test_decision_follows_the_rule(
    prompt: int,
    cached: int,
    queues: list[int],
    candidates: tuple[int, ...],
    reason: SplitReason,
) -> None:
    decision = POLICY.decide(prompt, cached, queues)
    assert decision.candidates == candidates
    assert decision.remote is bool(candidates)
    assert decision.reason is reason
    assert decision.uncached_tokens == prompt - cached


@given(
    prompt=st.integers(1, 100_000),
    cached_share=st.floats(0, 1),
    queues=st.lists(st.integers(0, 50), max_size=8),
    threshold=st.integers(0, 5_000),
    queue_max=st.integers(1, 50),
)
def test_every_candidate_has_room_and_every_skipped_one_has_none(
    prompt: int, cached_share: float, queues: list[int], threshold: int, queue_max: int
) -> None:
    cached = int(prompt * cached_share)
    decision = ThresholdSplitPolicy(threshold, queue_max).decide(prompt, cached, queues)
    expected = [
        index
        for index, queue in enumerate(queues)
        if should_offload_prefill(
            prompt,
            cached,
            queue,
            prefill_length_threshold=threshold,
            prefill_queue_max=queue_max,
        )
    ]
    assert list(decision.candidates) == expected
    assert decision.remote == bool(expected) == (decision.reason is SplitReason.LONG_PREFILL)
    assert decision.shortest_queue == (min(queues) if queues else None)


@given(prompt=st.integers(1, 10_000), cached=st.integers(0, 10_000), queue=st.integers(0, 100))
def test_more_cached_tokens_or_a_longer_queue_never_turns_local_into_remote(
    prompt: int, cached: int, queue: int
) -> None:
    if POLICY.decide(prompt, cached + 1, [queue]).remote:
        assert POLICY.decide(prompt, cached, [queue]).remote
    if POLICY.decide(prompt, cached, [queue + 1]).remote:
        assert POLICY.decide(prompt, cached, [queue]).remote
