"""The decode set of a later moment: what runs now, plus what was accepted, minus what ends.

Streams that began at about the same time and belong to one class are one cohort, so a look into
the future costs as many steps as there are cohorts, not streams.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from baton.requests import Priority
from services.admission.lengths import GRID_TOKENS, OutputLengths
from services.admission.policy import DecodePool, Streams

CohortKey = tuple[Priority, int]
"""Class, and when its streams began by the token clock, in units of GRID_TOKENS."""


@dataclass(slots=True)
class Tally:
    """How many requests, and the tokens of their prompts."""

    count: int = 0
    tokens: int = 0

    def add(self, count: int, tokens: int) -> None:
        """Counts some more, or fewer."""
        self.count += count
        self.tokens += tokens


class Cohorts:
    """The streams of the decode pool by class and age."""

    def __init__(self) -> None:
        self.by_key: dict[CohortKey, Tally] = {}
        self.count = 0
        self._prompt_tokens = 0
        self._born_tokens = 0.0

    def join(self, priority: Priority, clock_tokens: float, prompt_tokens: int) -> CohortKey:
        """Takes a stream in; returns what `leave` needs."""
        key = (priority, int(clock_tokens) // GRID_TOKENS)
        self.by_key.setdefault(key, Tally()).add(1, prompt_tokens)
        self.count += 1
        self._prompt_tokens += prompt_tokens
        self._born_tokens += key[1] * GRID_TOKENS
        return key

    def leave(self, key: CohortKey, prompt_tokens: int) -> None:
        """Lets a stream go."""
        tally = self.by_key[key]
        tally.add(-1, -prompt_tokens)
        if not tally.count:
            del self.by_key[key]
        self.count -= 1
        self._prompt_tokens -= prompt_tokens
        self._born_tokens -= key[1] * GRID_TOKENS

    def now(self, clock_tokens: float) -> Streams:
        """Returns the streams with all the tokens they hold."""
        grown = max(0.0, self.count * clock_tokens - self._born_tokens)
        return Streams(self.count, self._prompt_tokens + grown)


@dataclass(frozen=True, slots=True)
class CohortForecast:
    """Looks ahead from one moment; see DecodeForecast.

    `coming` are the accepted requests whose prompts are not computed, by class. They join evenly
    over the time looked ahead: at its end, prompts before a request's own are all computed.
    `elsewhere` are streams that other admission services let in; they end as the own ones do.
    """

    cohorts: Cohorts
    coming: Mapping[Priority, Tally]
    elsewhere: Streams
    lengths: OutputLengths
    clock_tokens: float
    pool: Callable[[], DecodePool]

    def at(self, horizon_s: float, *, held_back: bool = False) -> Streams:
        """See DecodeForecast."""
        now = self.cohorts.now(self.clock_tokens)
        pace_s = self.pool().tpot_s(now.plus(*self.elsewhere))
        more = horizon_s / max(pace_s, 1e-6)
        sequences, tokens = self._running(more)
        usual = self.lengths.of(Priority.NORMAL)
        kept = sequences / now.sequences if now.sequences else usual.survival(more)
        sequences += self.elsewhere.sequences * kept
        tokens += self.elsewhere.tokens * kept
        for priority, tally in self.coming.items():
            share = 1.0 if held_back else self.lengths.of(priority).mean_survival(more)
            grown = 0.0 if held_back else more / 2
            sequences += tally.count * share
            tokens += share * (tally.tokens + tally.count * grown)
        return Streams(sequences, tokens)

    def _running(self, more: float) -> tuple[float, float]:
        """Returns what is left, `more` tokens later, of the streams that run now."""
        tables = {priority: self.lengths.of(priority).survivals for priority in Priority}
        now, steps = int(self.clock_tokens) // GRID_TOKENS, int(more) // GRID_TOKENS
        sequences = tokens = 0.0
        for (priority, born), tally in self.cohorts.by_key.items():
            age, table = now - born, tables[priority]
            if age + steps < len(table):
                kept = tally.count * table[age + steps] / table[age]
            elif age < len(table):
                continue
            else:
                # Longer than all that were seen. Long tails are self-similar: half of them last
                # twice as long.
                kept = tally.count * age / (age + steps)
            sequences += kept
            tokens += kept * (tally.tokens / tally.count + (age + steps) * GRID_TOKENS)
        return sequences, tokens
