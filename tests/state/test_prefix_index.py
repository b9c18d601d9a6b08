"""The in-process prefix index against a plain model of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.engine.base import BlocksCleared, BlocksRemoved, BlocksStored
from baton.state.prefix_index import PrefixIndex

TTL_S = 2.0
WORKERS = ("w0", "w1", "w2", "w3")
CHAINS = (tuple(range(100, 108)), (100, 101, 102, *range(203, 208)), tuple(range(300, 304)))


@dataclass
class NaiveIndex:
    """What PrefixIndex means, in the plainest words."""

    held: dict[str, set[int]] = field(default_factory=dict)
    expected: dict[str, dict[int, float]] = field(default_factory=dict)

    def add(self, worker: str) -> None:
        self.held.setdefault(worker, set())

    def store(self, worker: str, hashes: Sequence[int]) -> None:
        self.add(worker)
        self.held[worker].update(hashes)

    def remove(self, worker: str, hashes: Sequence[int]) -> None:
        self.held.get(worker, set()).difference_update(hashes)

    def clear(self, worker: str) -> None:
        if worker in self.held:
            self.held[worker] = set()
            self.expected.pop(worker, None)

    def drop(self, worker: str) -> None:
        self.held.pop(worker, None)
        self.expected.pop(worker, None)

    def predict(self, worker: str, hashes: Sequence[int], now_s: float) -> None:
        if worker in self.held:
            ends = dict.fromkeys(hashes, now_s + TTL_S)
            self.expected.setdefault(worker, {}).update(ends)

    def match(self, hashes: Sequence[int], now_s: float) -> dict[str, int]:
        depths = {worker: self._depth(worker, hashes, now_s) for worker in self.held}
        return {worker: depth for worker, depth in depths.items() if depth}

    def _depth(self, worker: str, hashes: Sequence[int], now_s: float) -> int:
        expected = self.expected.get(worker, {})
        for depth, block in enumerate(hashes):
            if block not in self.held[worker] and expected.get(block, 0.0) <= now_s:
                return depth
        return len(hashes)


WORKER = st.sampled_from(WORKERS)
CHAIN = st.sampled_from(CHAINS)
PART = st.builds(
    lambda chain, start, size: chain[start : start + size],
    CHAIN,
    st.integers(0, 7),
    st.integers(0, 8),
)
STEP = st.one_of(
    st.tuples(st.sampled_from(["store", "remove"]), WORKER, PART),
    st.tuples(st.sampled_from(["clear", "drop", "add"]), WORKER),
    st.tuples(st.just("predict"), WORKER, PART),
    st.tuples(st.just("wait"), st.sampled_from([0.5, 1.0, 2.0])),
    st.tuples(st.just("match"), CHAIN),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(STEP, max_size=60))
def test_index_answers_like_the_model(steps: list[tuple[object, ...]]) -> None:
    index, naive, now_s = PrefixIndex(prediction_ttl_s=TTL_S), NaiveIndex(), 10.0
    for name, *arguments in steps:
        if name == "wait":
            now_s += float(str(arguments[0]))
        elif name == "match":
            assert index.match(arguments[0], now_s) == naive.match(arguments[0], now_s)
        else:
            extra = [now_s] if name == "predict" else []
            getattr(index, str(name))(*arguments, *extra)
            getattr(naive, str(name))(*arguments, *extra)
    for chain in CHAINS:
        assert index.match(chain, now_s) == naive.match(chain, now_s)


@settings(max_examples=200, deadline=None)
@given(st.lists(STEP, max_size=60), st.integers(1, 12))
def test_bounded_index_never_overstates(steps: list[tuple[object, ...]], bound: int) -> None:
    index, naive = PrefixIndex(max_entries=bound), NaiveIndex()
    for name, *arguments in steps:
        if name in {"store", "remove", "clear", "drop", "add"}:
            getattr(index, str(name))(*arguments)
            getattr(naive, str(name))(*arguments)
        elif name == "match":
            truth = naive.match(arguments[0], 0.0)
            for worker, depth in index.match(arguments[0], 0.0).items():
                assert depth <= truth[worker]
        assert len(index) <= bound


def test_match_ends_where_the_middle_was_evicted() -> None:
    index = PrefixIndex()
    index.store("w0", CHAINS[0])
    index.store("w1", CHAINS[0])

    index.remove("w0", CHAINS[0][3:4])

    assert index.match(CHAINS[0], 0.0) == {"w0": 3, "w1": 8}


def test_engine_events_are_applied() -> None:
    index = PrefixIndex()

    index.apply("w0", BlocksStored(1, (2, 3, 4)))
    index.apply("w0", BlocksRemoved((4,)))
    assert index.match([2, 3, 4], 0.0) == {"w0": 2}

    index.apply("w0", BlocksCleared())
    assert index.match([2, 3, 4], 0.0) == {}
    assert "w0" in index


def test_prediction_ends_unless_confirmed() -> None:
    index = PrefixIndex(prediction_ttl_s=TTL_S)
    index.add("w0")
    index.predict("w0", [1, 2], now_s=10.0)
    index.store("w0", [1])

    assert index.match([1, 2], 11.9) == {"w0": 2}
    assert index.match([1, 2], 12.0) == {"w0": 1}


def test_prediction_counts_whether_or_not_it_was_worked_in() -> None:
    index = PrefixIndex(prediction_ttl_s=TTL_S)
    for number, worker in enumerate(("w0", "w1")):
        index.add(worker)
        index.predict(worker, [1, 2][: number + 1], now_s=10.0)
        if number:
            index.settle()

    assert index.match([1, 2], 10.0) == {"w0": 1, "w1": 2}
    index.predict("w0", [1, 2], now_s=11.0)
    assert index.match([1, 2], 11.0) == {"w0": 2, "w1": 2}
    assert index.match([1, 2], 12.5) == {"w0": 2}


def test_ended_predictions_of_a_burst_are_not_found_and_go_a_few_at_a_time() -> None:
    index = PrefixIndex(prediction_ttl_s=TTL_S)
    index.add("w0")
    for chain in range(20):
        index.predict("w0", [chain], now_s=10.0)
    index.predict("w0", [99], now_s=11.9)

    left = []
    for chain in range(20):
        assert index.match([chain], 12.0) == {}
        left.append(len(index._predictions))

    assert left[0] >= 16
    assert left[-1] == 1
    assert index.match([99], 12.0) == {"w0": 1}


def test_prediction_for_an_unknown_worker_leaves_nothing() -> None:
    index = PrefixIndex()

    index.predict("gone", [1, 2], now_s=10.0)

    assert index.match([1, 2], 10.0) == {}
    assert "gone" not in index


def test_longest_untouched_blocks_go_first() -> None:
    index = PrefixIndex(max_entries=64)
    chains = [list(range(start, start + 8)) for start in range(0, 64, 8)]
    for chain in chains:
        index.store("w0", chain)
    index.match(chains[0], 0.0)

    index.store("w0", range(1000, 1008))

    assert index.match(chains[0], 0.0) == {"w0": 8}
    assert index.match(chains[1], 0.0) == {}


def test_many_restarts_do_not_widen_the_masks() -> None:
    index = PrefixIndex()
    for life in range(1000):
        index.store(f"w{life}", [1, 2, 3])
        index.drop(f"w{life}")

    index.store("last", [1, 2, 3])

    assert index._slots.live_mask.bit_length() < 16
    assert index.match([1, 2, 3], 0.0) == {"last": 3}


def test_swept_entries_are_freed() -> None:
    index = PrefixIndex()
    index.store("w0", range(5000))
    index.drop("w0")

    for start in range(10_000, 20_000, 100):
        index.store("w1", range(start, start + 100))

    assert len(index) == 10_000


@pytest.mark.parametrize("workers", [1, 24, 25, 256])
def test_every_holder_is_named(workers: int) -> None:
    index = PrefixIndex()
    for number in range(workers):
        index.store(f"w{number}", range(number + 1))

    depths = index.match(range(workers), 0.0)

    assert depths == {f"w{number}": number + 1 for number in range(workers)}
