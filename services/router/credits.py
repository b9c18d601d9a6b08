"""What this router sent out and the workers' figures do not show yet."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

_ON_THE_WAY_S = 0.02
"""A dispatch may take this long until a worker's figures can show it. Seconds."""


class Unseen(NamedTuple):
    """Dispatches to one worker that its figures cannot show yet."""

    requests: int
    tokens: int


@dataclass(eq=False, slots=True)
class Credit:
    """One dispatch. `tokens` are the uncached prompt tokens it brings."""

    incarnation: str
    sent_at_s: float
    tokens: int


class InFlightCredits:
    """Counts own dispatches per worker while they run, so that bursts spread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Insertion order is the order in time.
        self._sent: dict[str, dict[Credit, None]] = {}

    @property
    def total(self) -> int:
        """Credits held now."""
        return sum(map(len, self._sent.values()))

    @contextmanager
    def hold(self, incarnation: str, tokens: int) -> Iterator[None]:
        """Counts a dispatch for the length of the block."""
        credit = self.take(incarnation, tokens)
        try:
            yield
        finally:
            self.give_back(credit)

    def take(self, incarnation: str, tokens: int) -> Credit:
        """Counts a dispatch until `give_back`."""
        credit = Credit(incarnation, self._clock(), tokens)
        self._sent.setdefault(incarnation, {})[credit] = None
        return credit

    def give_back(self, credit: Credit) -> None:
        """Ends a dispatch; again it does nothing."""
        sent = self._sent.get(credit.incarnation, {})
        sent.pop(credit, None)
        if not sent:
            self._sent.pop(credit.incarnation, None)

    def unseen(self, incarnation: str, stats_at_s: float) -> Unseen:
        """Returns what a worker's figures taken at `stats_at_s` cannot show yet."""
        requests = tokens = 0
        for credit in reversed(self._sent.get(incarnation, {})):
            if credit.sent_at_s < stats_at_s - _ON_THE_WAY_S:
                break
            requests += 1
            tokens += credit.tokens
        return Unseen(requests, tokens)


class Suspects:
    """Workers on which a request just failed; avoided for a while, by incarnation."""

    def __init__(self, forget_after_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._forget_after_s = forget_after_s
        self._clock = clock
        self._until_s: dict[str, float] = {}

    def add(self, incarnation: str) -> None:
        """Suspects a worker from now on."""
        now_s = self._clock()
        self._until_s = {name: end for name, end in self._until_s.items() if end > now_s}
        self._until_s[incarnation] = now_s + self._forget_after_s

    def __contains__(self, incarnation: str) -> bool:
        return self._until_s.get(incarnation, 0.0) > self._clock()
