"""What this router and its fellows sent out and the workers' figures do not show yet."""

import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from baton.state.shared_credits import NOTHING_UNSEEN, CreditExchange, Dispatch, Unseen

_ON_THE_WAY_S = 0.02
"""A dispatch may take this long until a worker's figures can show it. Seconds."""


@dataclass(eq=False, slots=True)
class Credit:
    """One dispatch. `tokens` are the uncached prompt tokens it brings."""

    incarnation: str
    sent_at_s: float
    tokens: int


class Credits(Protocol):
    """Dispatches that count towards a worker's load before its own figures show them."""

    @property
    def holders(self) -> Collection[str]:
        """Incarnations of the workers that any dispatch is with."""
        ...

    def unseen(self, incarnation: str, stats_at_s: float) -> Unseen:
        """Returns what a worker's figures taken at `stats_at_s` cannot show yet."""
        ...


class _Sent:
    """The dispatches to one worker that run, and the sum of those that its figures miss.

    Both dicts are in the order of time. Figures get younger from one question to the next, so each
    dispatch leaves `_missed` once, and no question has to count them.
    """

    def __init__(self) -> None:
        self.all: dict[Credit, None] = {}
        self._missed: dict[Credit, None] = {}
        self._since_s = -math.inf
        self._unseen = NOTHING_UNSEEN

    def add(self, credit: Credit) -> None:
        self.all[credit] = self._missed[credit] = None
        self._unseen = self._unseen.plus(1, credit.tokens)

    def remove(self, credit: Credit) -> None:
        self.all.pop(credit, None)
        if credit in self._missed:
            self._see(credit)

    def unseen(self, since_s: float) -> Unseen:
        if since_s < self._since_s:
            self._missed = dict(self.all)
            self._unseen = Unseen(len(self.all), sum(credit.tokens for credit in self.all))
        self._since_s = since_s
        while self._missed and (first := next(iter(self._missed))).sent_at_s < since_s:
            self._see(first)
        return self._unseen

    def _see(self, credit: Credit) -> None:
        del self._missed[credit]
        self._unseen = self._unseen.plus(-1, -credit.tokens)


class InFlightCredits:
    """Counts own dispatches per worker while they run, so that bursts spread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sent: dict[str, _Sent] = {}

    @property
    def total(self) -> int:
        """Credits held now."""
        return sum(len(sent.all) for sent in self._sent.values())

    @property
    def holders(self) -> Collection[str]:
        """Incarnations of the workers that any dispatch is with."""
        return self._sent.keys()

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
        sent = self._sent.get(incarnation)
        if sent is None:
            sent = self._sent[incarnation] = _Sent()
        sent.add(credit)
        return credit

    def give_back(self, credit: Credit) -> None:
        """Ends a dispatch; again it does nothing."""
        sent = self._sent.get(credit.incarnation)
        if sent is None:
            return
        sent.remove(credit)
        if not sent.all:
            del self._sent[credit.incarnation]

    def unseen(self, incarnation: str, stats_at_s: float) -> Unseen:
        """Returns what a worker's figures taken at `stats_at_s` cannot show yet."""
        sent = self._sent.get(incarnation)
        return NOTHING_UNSEEN if sent is None else sent.unseen(stats_at_s - _ON_THE_WAY_S)

    def recent(self, since_s: float) -> list[Dispatch]:
        """Returns the dispatches that still run and were made since a moment of the clock."""
        found = []
        for incarnation, sent in self._sent.items():
            for credit in reversed(sent.all):
                if credit.sent_at_s < since_s:
                    break
                found.append(Dispatch(incarnation, credit.sent_at_s, credit.tokens))
        return found


class FleetCredits:
    """Own dispatches and those that the other routers told of."""

    def __init__(self, own: InFlightCredits, others: CreditExchange) -> None:
        self._own = own
        self._others = others

    @property
    def holders(self) -> Collection[str]:
        """Incarnations of the workers that any router's dispatch is with."""
        others = self._others.holders
        return {*self._own.holders, *others} if others else self._own.holders

    def unseen(self, incarnation: str, stats_at_s: float) -> Unseen:
        """Returns what a worker's figures taken at `stats_at_s` cannot show yet."""
        own = self._own.unseen(incarnation, stats_at_s)
        others = self._others.unseen(incarnation, stats_at_s - _ON_THE_WAY_S)
        return own.plus(others.requests, others.tokens) if others.requests else own


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

    def now(self) -> frozenset[str]:
        """Returns everybody who is suspected now."""
        now_s = self._clock()
        return frozenset(name for name, end in self._until_s.items() if end > now_s)

    def __contains__(self, incarnation: str) -> bool:
        return self._until_s.get(incarnation, 0.0) > self._clock()
