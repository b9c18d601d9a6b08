"""Least squares without negative coefficients."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.least_squares import solve_nonnegative

rows = st.lists(st.tuples(*[st.floats(0, 10)] * 3, st.floats(-5, 5)), min_size=1, max_size=8)


@given(rows)
def test_no_direction_that_is_allowed_goes_further_down(
    samples: list[tuple[float, float, float, float]],
) -> None:
    """The conditions of Karush, Kuhn and Tucker, which only the minimum meets."""
    moments = [
        [sum(s[i] * s[j] for s in samples) + 0.1 * (i == j) for j in range(3)] for i in range(3)
    ]
    target = [sum(s[i] * s[3] for s in samples) for i in range(3)]

    solved = solve_nonnegative(moments, target)

    for i, w in enumerate(solved):
        slope = sum(m * v for m, v in zip(moments[i], solved, strict=True)) - target[i]
        assert w >= 0
        assert slope >= -1e-6 * max(1.0, *map(abs, target))
        if w > 0:
            assert slope == pytest.approx(0.0, abs=1e-6 * max(1.0, *map(abs, target)))


def test_a_coefficient_that_would_be_negative_is_zero_and_the_others_make_up_for_it() -> None:
    assert solve_nonnegative([[2.0, 1.0], [1.0, 1.0]], [1.0, 1.2]) == pytest.approx([0.0, 1.2])
