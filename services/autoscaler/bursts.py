"""How large bursts are, by the share of requests that come in them. Pure.

No cold start answers a burst that is over before a worker is ready, so capacity for it has to be
there already. How much is a question of how many requests may miss their limits: the policy keeps
what a share `cover` of the last half hour's requests met at their moment, and the share follows the
error budget. More requests missed than the target allows raise it, fewer lower it.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

MEMORY_S = 1800.0
W = 1.0
LEAST_COVER = 0.0
MOST_COVER = 0.99
START_COVER = 0.9
_ADAPT_REQUESTS = 2000.0
"""How many requests that all missed would raise the cover from nothing to everything."""


class _Moment(NamedTuple):
    at_s: float
    requests: int
    rate: float


@dataclass(slots=True)
class Bursts:
    """Remembers the rates at which requests came. `target` is the share that is to be met."""

    target: float
    cover: float = START_COVER
    _moments: deque[_Moment] = field(default_factory=deque)

    def add(self, now_s: float, requests: int, rate: float) -> None:
        """Takes in that `requests` came while the rate was `rate`."""
        if requests:
            self._moments.append(_Moment(now_s, requests, rate))
        while self._moments and self._moments[0].at_s < now_s - MEMORY_S:
            self._moments.popleft()

    def learn(self, ended: int, met: int) -> None:
        """Takes in how many more requests ended, and met their limits."""
        allowed = ended * (1 - self.target)
        self.cover += (ended - met - allowed) / _ADAPT_REQUESTS
        self.cover = max(LEAST_COVER, min(MOST_COVER, self.cover))

    def rate(self) -> float:
        """Returns the rate that covers the share `cover` of the requests; 0 before the first."""
        left = self.cover * sum(moment.requests ** W for moment in self._moments)
        for moment in sorted(self._moments, key=lambda it: it.rate):
            left -= moment.requests ** W
            if left <= 0:
                return moment.rate
        return 0.0
