"""What the traffic asks of each pool, from one look at its counters to the next. Pure."""

import math
from dataclasses import dataclass, field

from baton.latency import CostModel
from services.autoscaler.bursts import Bursts
from services.autoscaler.forecast import RateForecast
from services.autoscaler.state import Traffic

_SHAPE_MEMORY_REQUESTS = 200.0
"""The shape of requests is a mean over about as many of the last ones."""

DEFAULT_OUTPUT_TOKENS = 128.0
DEFAULT_PROMPT_TOKENS = 512.0
HEADROOM = 0.5
"""How many times the mean excess over the forecast is kept free."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is expected of the fleet: remote prompts per second and their mean length, the local
    ones, and answers per second with their mean length and context. Lengths in tokens.
    """

    remote_per_s: float
    remote_tokens: float
    local_per_s: float
    local_tokens: float
    output_tokens: float
    context_tokens: float

    def remote_work(self, costs: CostModel) -> float:
        """Returns the seconds of prefill that arrive per second for prefill workers."""
        return self.remote_per_s * costs.prefill_s(round(self.remote_tokens), 0)

    def local_work(self, costs: CostModel) -> float:
        """Returns the seconds of prefill that arrive per second for decode workers."""
        return self.local_per_s * costs.prefill_s(round(self.local_tokens), 0)

    @property
    def output_per_s(self) -> float:
        """Tokens to generate per second."""
        return (self.remote_per_s + self.local_per_s) * self.output_tokens


@dataclass(slots=True)
class DemandForecast:
    """Follows the traffic. Call `look` now and then with counters that only grow."""

    _remote: RateForecast = field(default_factory=RateForecast)
    _local: RateForecast = field(default_factory=RateForecast)
    _remote_tokens: float = 0.0
    _local_tokens: float = 0.0
    _output_tokens: float = DEFAULT_OUTPUT_TOKENS
    _context_tokens: float = DEFAULT_PROMPT_TOKENS
    bursts: Bursts = field(default_factory=Bursts)
    _last: Traffic | None = None
    _last_s: float = 0.0
    _before: float = 0.0

    def look(self, now_s: float, traffic: Traffic, start_s: float) -> None:
        """Takes in the counters; the first look only sets the start."""
        last, elapsed_s = self._last, now_s - self._last_s
        if last is not None and elapsed_s <= 0:
            return
        self._last, self._last_s = traffic, now_s
        if last is None:
            return
        remote = traffic.remote_requests - last.remote_requests
        local = traffic.local_requests - last.local_requests
        finished = traffic.finished - last.finished
        rate = remote / elapsed_s
        # Over two looks, since a burst may begin in the midst of one.
        self.bursts.add(now_s, (rate + self._before) / 2, start_s)
        self.bursts.learn(traffic.ended - last.ended, traffic.met - last.met)
        self._before = rate
        self._remote.update(remote / elapsed_s, elapsed_s)
        self._local.update(local / elapsed_s, elapsed_s)
        self._remote_tokens = _mean(
            self._remote_tokens, traffic.remote_tokens - last.remote_tokens, remote
        )
        self._local_tokens = _mean(
            self._local_tokens, traffic.local_tokens - last.local_tokens, local
        )
        self._output_tokens = _mean(
            self._output_tokens, traffic.output_tokens - last.output_tokens, finished
        )
        self._context_tokens = _mean(
            self._context_tokens, traffic.context_tokens - last.context_tokens, finished
        )

    def burst_work(self, costs: CostModel) -> float:
        """Returns the seconds of prefill that arrive per second in bursts that are covered."""
        return self.bursts.rate() * costs.prefill_s(round(self._remote_tokens), 0)

    def ahead(self, horizon_s: float) -> Load:
        """Returns what is expected in `horizon_s` seconds, with headroom for bursts."""
        return Load(
            remote_per_s=self._remote.ahead(horizon_s) + HEADROOM * self._remote.headroom,
            remote_tokens=self._remote_tokens,
            local_per_s=self._local.ahead(horizon_s) + HEADROOM * self._local.headroom,
            local_tokens=self._local_tokens,
            output_tokens=self._output_tokens,
            context_tokens=self._context_tokens,
        )


def _mean(before: float, added: float, count: int) -> float:
    """Returns the running mean after `count` more values that add up to `added`."""
    if count <= 0:
        return before
    weight = 1 - math.exp(-count / _SHAPE_MEMORY_REQUESTS)
    if not before:
        return added / count
    return before + (added / count - before) * weight
