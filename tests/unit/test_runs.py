"""Joining adjacent blocks: every block is copied once, to its place, by as few runs as possible."""

from hypothesis import given
from hypothesis import strategies as st

from baton.kv.runs import Run, runs


def test_adjacent_blocks_are_one_run() -> None:
    assert list(runs([3, 4, 5], [7, 8, 9])) == [Run(3, 7, 3)]


def test_descending_blocks_are_one_run_too() -> None:
    assert list(runs([5, 4, 3], [9, 8, 7])) == [Run(3, 7, 3)]


def test_opposite_orders_join_nothing() -> None:
    assert list(runs([3, 4], [8, 7])) == [Run(4, 7, 1), Run(3, 8, 1)]


def test_nothing_makes_no_run() -> None:
    assert list(runs([], [])) == []


@given(st.permutations(range(12)), st.permutations(range(12)), st.integers(0, 12))
def test_runs_copy_what_the_lists_say(sources: list[int], targets: list[int], count: int) -> None:
    pairs = set(zip(sources[:count], targets[:count], strict=True))
    copied = [
        (run.source + step, run.target + step)
        for run in runs(sources[:count], targets[:count])
        for step in range(run.length)
    ]
    assert len(copied) == count
    assert set(copied) == pairs
