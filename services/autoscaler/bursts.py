"""How large bursts are that no cold start can answer in time. Pure.

Capacity for them has to be there already. How much is a question of how many requests may miss
their limits: the policy keeps what was needed at a share `cover` of the moments at which requests
came lately, and the share follows the error budget. More misses than the target allows raise it,
fewer lower it.

While it is calm, the capacity only has to hold what comes first, until cold starts can help: the
same share of the moments with which earlier calms ended.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

MEMORY_S = 1800.0
TARGET = 0.98
"""Share of requests within both limits that the policy aims at."""

MOST_COVER = 0.99
START_COVER = 0.95
ADAPT_REQUESTS = 10_000.0
"""How many requests that all missed would raise the cover from nothing to everything."""

CALM_S = 30.0
"""It is calm after so long without a moment that was loud."""

LOUD = 0.25
"""A moment is loud from this share of the covered rate on."""

FEWEST_ONSETS = 3
"""So many calms have to have ended within memory before their ends are believed."""


class _Moment(NamedTuple):
    at_s: float
    rate: float
    is_onset: bool


@dataclass(slots=True)
class Bursts:
    """Remembers for `memory_s` the rates at which requests came."""

    memory_s: float = MEMORY_S
    target: float = TARGET
    cover: float = START_COVER
    is_calm: bool = False
    _moments: deque[_Moment] = field(default_factory=deque)
    _onsets: deque[float] = field(default_factory=deque)
    _loud_s: float = 0.0

    def add(self, now_s: float, rate: float, start_s: float) -> None:
        """Takes in the rate of now; moments without requests need nothing and do not count.

        `start_s` is how long a cold start takes: so long do the ends of calms last.
        """
        self._listen(now_s, rate)
        if rate > 0:
            is_onset = bool(self._onsets) and now_s <= self._onsets[-1] + start_s
            self._moments.append(_Moment(now_s, rate, is_onset))
        oldest_s = now_s - self.memory_s
        while self._moments and self._moments[0].at_s < oldest_s:
            self._moments.popleft()
        while self._onsets and self._onsets[0] < oldest_s:
            self._onsets.popleft()

    def learn(self, ended: int, met: int) -> None:
        """Takes in how many more requests ended, and how many of them met their limits."""
        allowed = ended * (1 - self.target)
        self.cover += (ended - met - allowed) / ADAPT_REQUESTS
        self.cover = max(0.0, min(MOST_COVER, self.cover))

    def rate(self) -> float:
        """Returns the rate that covers the share `cover` of what may come now; 0 if unknown."""
        if self.is_calm and len(self._onsets) >= FEWEST_ONSETS:
            return self._covered([it.rate for it in self._moments if it.is_onset])
        return self._covered([it.rate for it in self._moments])

    def _listen(self, now_s: float, rate: float) -> None:
        if rate > 0 and rate >= LOUD * self._covered([it.rate for it in self._moments]):
            if self.is_calm:
                self._onsets.append(now_s)
            self._loud_s, self.is_calm = now_s, False
        elif now_s - self._loud_s >= CALM_S:
            self.is_calm = True

    def _covered(self, rates: Sequence[float]) -> float:
        if not rates:
            return 0.0
        return sorted(rates)[min(len(rates) - 1, int(self.cover * len(rates)))]
