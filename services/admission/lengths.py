"""How many tokens answers have, per class: the share of them that is longer than a given age.

Only lengths of answers that ended by themselves are learned. Until a class has enough of them,
those of all classes stand in, and before that an exponential of the usual mean.
"""

import math
from bisect import bisect_right
from collections import deque
from itertools import accumulate

from baton.latency import OUTPUT_TOKENS
from baton.requests import Priority

_KEPT = 512
_ENOUGH = 32
_REFRESH_EVERY = 16

GRID_TOKENS = 4
"""Ages are told apart by so many tokens."""


class Lengths:
    """One distribution of lengths, from its latest samples."""

    def __init__(self) -> None:
        self._samples: deque[int] = deque(maxlen=_KEPT)
        self._sorted: list[int] = []
        self._above: list[int] = []
        self._stale = 0
        self.survivals = _exponential()
        """`survival` at multiples of GRID_TOKENS, up to where it is 0."""

    def add(self, tokens: int) -> None:
        """Takes the length of an answer that ended."""
        self._samples.append(tokens)
        self._stale += 1
        if self._stale >= _REFRESH_EVERY or len(self._samples) <= _ENOUGH:
            self.refresh()

    @property
    def is_known(self) -> bool:
        """Tells whether there were answers enough to go by."""
        return len(self._samples) >= _ENOUGH

    @property
    def mean(self) -> float:
        """The mean length."""
        return self._above[0] / len(self._sorted) if self._sorted else float(OUTPUT_TOKENS)

    def quantile(self, share: float) -> int:
        """Returns the length that `share` of the answers do not exceed."""
        if not self._sorted:
            return OUTPUT_TOKENS
        return self._sorted[min(len(self._sorted) - 1, int(share * len(self._sorted)))]

    def survival(self, tokens: float) -> float:
        """Returns the share of answers that are longer than `tokens`."""
        if not self._sorted:
            return math.exp(-tokens / OUTPUT_TOKENS)
        return 1 - bisect_right(self._sorted, tokens) / len(self._sorted)

    def mean_survival(self, tokens: float) -> float:
        """Returns the mean of `survival` over ages from 0 to `tokens`."""
        if tokens <= 0:
            return 1.0
        if not self._sorted:
            return OUTPUT_TOKENS / tokens * (1 - math.exp(-tokens / OUTPUT_TOKENS))
        # The area under the survival curve up to a point is the mean of min(length, point).
        ended = bisect_right(self._sorted, tokens)
        ended_tokens = self._above[0] - (self._above[ended] if ended < len(self._above) else 0.0)
        area = ended_tokens + (len(self._sorted) - ended) * tokens
        return area / (len(self._sorted) * tokens)

    def refresh(self) -> None:
        """Takes the samples in that came since the last time; `add` does so now and then."""
        self._stale = 0
        self._sorted = sorted(self._samples)
        # `_above[i]` is the sum of the lengths from the i-th shortest on.
        self._above = list(accumulate(reversed(self._sorted)))[::-1]
        points = range(0, self._sorted[-1], GRID_TOKENS)
        self.survivals = [self.survival(tokens) for tokens in points]


def _exponential() -> list[float]:
    points = range(0, 8 * OUTPUT_TOKENS, GRID_TOKENS)
    return [math.exp(-tokens / OUTPUT_TOKENS) for tokens in points]


class OutputLengths:
    """The lengths of all classes."""

    def __init__(self) -> None:
        self._all = Lengths()
        self._classes = {priority: Lengths() for priority in Priority}

    def add(self, priority: Priority, tokens: int) -> None:
        """Takes the length of an answer that ended by itself."""
        if tokens > 0:
            self._all.add(tokens)
            self._classes[priority].add(tokens)

    def of(self, priority: Priority) -> Lengths:
        """Returns the best known distribution for a class."""
        own = self._classes[priority]
        return own if own.is_known else self._all
