"""How large bursts are that no cold start can answer in time. Pure.

Capacity for them has to be there already. How much is a question of how many requests may miss
their limits: the policy keeps what was needed at a share `cover` of the moments at which requests
came lately, and the share follows the error budget. More misses than the target allows raise it,
fewer lower it.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

MEMORY_S = 1800.0
TARGET = 0.98
"""Share of requests within both limits that the policy aims at."""

MOST_COVER = 0.99
START_COVER = 0.95
ADAPT_REQUESTS = 1000.0
"""How many requests that all missed would raise the cover from nothing to everything."""


class _Moment(NamedTuple):
    at_s: float
    rate: float


@dataclass(slots=True)
class Bursts:
    """Remembers for `memory_s` the rates at which requests came."""

    memory_s: float = MEMORY_S
    target: float = TARGET
    cover: float = START_COVER
    _moments: deque[_Moment] = field(default_factory=deque)

    def add(self, now_s: float, rate: float) -> None:
        """Takes in the rate of now; moments without requests need nothing and do not count."""
        if rate > 0:
            self._moments.append(_Moment(now_s, rate))
        while self._moments and self._moments[0].at_s < now_s - self.memory_s:
            self._moments.popleft()

    def learn(self, ended: int, met: int) -> None:
        """Takes in how many more requests ended, and how many of them met their limits."""
        allowed = ended * (1 - self.target)
        self.cover += (ended - met - allowed) / ADAPT_REQUESTS
        self.cover = max(0.0, min(MOST_COVER, self.cover))

    def rate(self) -> float:
        """Returns the rate that covers the share `cover` of the moments; 0 without any."""
        if not self._moments:
            return 0.0
        rates = sorted(moment.rate for moment in self._moments)
        return rates[min(len(rates) - 1, int(self.cover * len(rates)))]
