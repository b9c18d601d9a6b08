"""When synthetic requests come: Poisson, or in bursts."""

import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Arrivals:
    """`per_s` requests per second on average; gaps are Gamma with coefficient of variation `cv`.

    1 is Poisson. Above it, arrivals come in bursts.
    """

    per_s: float
    cv: float = 1.0

    def times(self, rng: random.Random) -> Iterator[float]:
        """Yields arrival times in seconds, for ever."""
        shape = 1 / (self.cv * self.cv)
        now_s = 0.0
        while True:
            now_s += rng.gammavariate(shape, 1 / (shape * self.per_s))
            yield now_s
