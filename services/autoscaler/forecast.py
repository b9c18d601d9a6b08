"""Where a rate is going: level and trend, and how far above them it tends to be. Pure.

Holt's linear method (C. C. Holt, 1957) with weights by time instead of by sample, so that looks
need not be regular, and a damped trend (Gardner and McKenzie, 1985): a slope is not believed for
longer than it lasted. The headroom is the running mean of what came above the forecast.

A level that rises is believed sooner than one that falls: a worker too many costs some seconds of
it, one too few costs requests.
"""

import math
from dataclasses import dataclass

RISE_MEMORY_S = 5.0
FALL_MEMORY_S = 15.0
TREND_MEMORY_S = 60.0
HEADROOM_MEMORY_S = 180.0
TREND_LASTS_S = 60.0


@dataclass(slots=True)
class RateForecast:
    """Follows one rate. All rates are per second."""

    level: float = 0.0
    trend: float = 0.0
    headroom: float = 0.0
    _seconds: float = 0.0

    def update(self, rate: float, elapsed_s: float) -> None:
        """Takes in the mean rate of the last `elapsed_s` seconds, more than none."""
        if not self._seconds:
            self.level = rate
        before, expected = self.level, self.level + self.trend * elapsed_s
        self._seconds += elapsed_s
        memory_s = RISE_MEMORY_S if rate > self.level else FALL_MEMORY_S
        self.level += (rate - self.level) * _weight(elapsed_s, min(memory_s, self._seconds))
        slope = (self.level - before) / elapsed_s
        self.trend += (slope - self.trend) * _weight(elapsed_s, TREND_MEMORY_S)
        excess = max(0.0, rate - max(0.0, expected))
        self.headroom += (excess - self.headroom) * _weight(elapsed_s, HEADROOM_MEMORY_S)

    def ahead(self, horizon_s: float) -> float:
        """Returns the rate expected in `horizon_s`, without headroom."""
        lasts_s = TREND_LASTS_S * (1 - math.exp(-horizon_s / TREND_LASTS_S))
        return max(0.0, self.level + self.trend * lasts_s)


def _weight(elapsed_s: float, memory_s: float) -> float:
    return 1 - math.exp(-elapsed_s / memory_s)
