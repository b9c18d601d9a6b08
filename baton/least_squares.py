"""Least squares without negative coefficients, for a handful of unknowns.

With so few, every choice of coefficients that are zero can be tried: the best one whose others are
not negative is the answer (Lawson and Hanson, Solving Least Squares Problems, ch. 23).
"""

from collections.abc import Sequence
from itertools import combinations

Matrix = Sequence[Sequence[float]]


def solve_nonnegative(moments: Matrix, target: Sequence[float]) -> list[float]:
    """Returns the w >= 0 that minimises w'Mw - 2 w't for a positive definite M."""
    size = len(target)
    best, lowest = [0.0] * size, 0.0
    for count in range(size, 0, -1):
        for free in combinations(range(size), count):
            part = _solve([[moments[i][j] for j in free] for i in free], [target[i] for i in free])
            if min(part) < 0:
                continue
            # At the solution of its equations the whole is -w't.
            height = -sum(w * target[i] for w, i in zip(part, free, strict=True))
            if height < lowest:
                best, lowest = [0.0] * size, height
                for w, i in zip(part, free, strict=True):
                    best[i] = w
        if count == size and lowest < 0:
            break
    return best


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Solves a positive definite system by elimination, which needs no pivoting then."""
    size = len(right)
    for k in range(size):
        for i in range(k + 1, size):
            factor = matrix[i][k] / matrix[k][k]
            for j in range(k, size):
                matrix[i][j] -= factor * matrix[k][j]
            right[i] -= factor * right[k]
    for k in reversed(range(size)):
        right[k] -= sum(matrix[k][j] * right[j] for j in range(k + 1, size))
        right[k] /= matrix[k][k]
    return right
