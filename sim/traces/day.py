"""A day's load in an hour: a sine with sudden spikes, for questions about autoscaling."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from sim.workload import SimRequest

BLOCK_TOKENS = 64


@dataclass(frozen=True, slots=True)
class DayTrace:
    """Requests at `mean_per_s` on average, between 0.2 and 1.8 times that over `day_s` seconds.

    `spikes` times a day, at random, the load is `spike_factor` as high for `spike_s` seconds.
    Prompts have 64 to about eight times `prompt_tokens`, log-normally around it; answers 16 to
    256.
    """

    mean_per_s: float = 2.0
    day_s: float = 3600.0
    spikes: int = 4
    spike_s: float = 60.0
    spike_factor: float = 2.5
    prompt_tokens: int = 1000
    block_tokens: int = BLOCK_TOKENS

    @property
    def name(self) -> str:
        """The load in a few words."""
        return f"day of {self.day_s:g} s with {self.spikes} spikes"

    def requests(self, seed: int, rate: float = 1.0) -> Iterator[SimRequest]:
        """See `Trace`."""
        rng = random.Random(f"day {seed}")  # noqa: S311 - not for secrets
        spikes = [rng.uniform(0, self.day_s - self.spike_s) for _ in range(self.spikes)]
        most_per_s = 1.8 * self.mean_per_s * self.spike_factor
        at_s = 0.0
        while (at_s := at_s + rng.expovariate(most_per_s)) < self.day_s:
            if rng.random() * most_per_s < self._per_s(at_s, spikes):
                length = rng.lognormvariate(math.log(self.prompt_tokens), 0.7)
                prompt = 64 + min(8 * self.prompt_tokens, int(length))
                yield SimRequest(at_s / rate, prompt, rng.randint(16, 256))

    def _per_s(self, at_s: float, spikes: list[float]) -> float:
        wave = 1 - 0.8 * math.cos(2 * math.pi * at_s / self.day_s)
        spiking = any(start_s <= at_s < start_s + self.spike_s for start_s in spikes)
        return self.mean_per_s * wave * (self.spike_factor if spiking else 1.0)
