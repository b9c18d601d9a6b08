"""Least squares without negative coefficients, for a handful of features."""

from collections.abc import Sequence
from itertools import combinations

Coefficients = tuple[float, float, float]

Sample = tuple[tuple[float, float, float], float]
"""Features and the measured value."""


def fit(samples: Sequence[Sample]) -> tuple[Coefficients, float]:
    """Returns the coefficients with the least squared relative error, and its mean magnitude.

    Tries every subset of the features and keeps the best whose coefficients are not negative:
    with three features that is exact and cheap. Raises ValueError without samples.
    """
    if not samples:
        raise ValueError("nothing to fit")
    best: Coefficients = (0.0, 0.0, 0.0)
    for size in (1, 2, 3):
        for columns in combinations(range(3), size):
            solved = _solve(samples, columns)
            if solved is not None and _squares(samples, solved) < _squares(samples, best):
                best = solved
    return best, mean_error(samples, best)


def mean_error(samples: Sequence[Sample], coefficients: Coefficients) -> float:
    """Returns the mean of |predicted - measured| / measured."""
    return sum(abs(_residual(sample, coefficients)) for sample in samples) / len(samples)


def _residual(sample: Sample, coefficients: Coefficients) -> float:
    features, value = sample
    return sum(c * x for c, x in zip(coefficients, features, strict=True)) / value - 1


def _squares(samples: Sequence[Sample], coefficients: Coefficients) -> float:
    return sum(_residual(sample, coefficients) ** 2 for sample in samples)


def _solve(samples: Sequence[Sample], columns: Sequence[int]) -> Coefficients | None:
    """Solves the normal equations for some columns; None when singular or negative."""
    rows = [[features[c] / value for c in columns] for features, value in samples]
    scales = [max(row[i] for row in rows) or 1.0 for i in range(len(columns))]
    rows = [[x / s for x, s in zip(row, scales, strict=True)] for row in rows]
    size = len(columns)
    matrix = [
        [sum(row[i] * row[j] for row in rows) for j in range(size)] + [sum(row[i] for row in rows)]
        for i in range(size)
    ]
    solution = _eliminate(matrix)
    if solution is None or min(solution) < 0:
        return None
    found = [0.0, 0.0, 0.0]
    for column, value, scale in zip(columns, solution, scales, strict=True):
        found[column] = value / scale
    return found[0], found[1], found[2]


def _eliminate(matrix: list[list[float]]) -> list[float] | None:
    size = len(matrix)
    for i in range(size):
        pivot = max(range(i, size), key=lambda row: abs(matrix[row][i]))
        if abs(matrix[pivot][i]) < 1e-12:
            return None
        matrix[i], matrix[pivot] = matrix[pivot], matrix[i]
        for row in range(size):
            if row != i:
                factor = matrix[row][i] / matrix[i][i]
                matrix[row] = [x - factor * y for x, y in zip(matrix[row], matrix[i], strict=True)]
    return [matrix[i][size] / matrix[i][i] for i in range(size)]
