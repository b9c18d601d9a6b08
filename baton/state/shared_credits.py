"""What all routers sent out lately and the workers' figures do not show yet.

Each router tells the others, some twenty times a second while it dispatches, which dispatches of
the last second it made; each report replaces the one before. Nothing is counted up and down in
Redis, so nothing can leak: a router that dies simply stops reporting, and its last report is void
after REPORT_LIFE_S. Without Redis every router goes on with its own dispatches.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import FiniteFloat, NonNegativeInt, TypeAdapter
from redis.asyncio import Redis

from baton.state import keys
from baton.state.background import running
from baton.state.connect import REDIS_ERRORS
from baton.state.streams import read_streams

logger = logging.getLogger(__name__)

PUBLISH_EVERY_S = 0.05
REPORT_LIFE_S = 1.0
RECENT_S = 1.0
"""Dispatches older than this are in the workers' own figures, or those are stale anyway."""

_KEPT_REPORTS = 256
_STREAM_TTL_S = 10
_RETRY_S = 0.2
_REPORT_FIELD = "report"


class Dispatch(NamedTuple):
    """One dispatch to a worker's incarnation: when, and the uncached tokens that it brings."""

    incarnation: str
    sent_at_s: float
    tokens: int


class Unseen(NamedTuple):
    """Dispatches to one worker that its figures cannot show yet."""

    requests: int
    tokens: int

    def plus(self, requests: int, tokens: int) -> "Unseen":
        """Returns the sum with others."""
        return Unseen(self.requests + requests, self.tokens + tokens)


@dataclass(frozen=True, slots=True)
class _Report:
    router: str
    taken_at_s: FiniteFloat
    dispatches: list[tuple[str, FiniteFloat, NonNegativeInt]]


_REPORT = TypeAdapter(_Report)

NOTHING_UNSEEN = Unseen(0, 0)

Recent = Callable[[float], Sequence[Dispatch]]
"""Returns a router's own live dispatches sent since a moment of the monotonic clock."""


class CreditExchange:
    """Tells the other routers of this one's dispatches and knows theirs; run `run` beside it.

    `router` is this router's incarnation. Moments are at `clock`; only `wall_clock` travels.
    """

    def __init__(
        self,
        redis: Redis,
        router: str,
        recent: Recent,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._redis = redis
        self._router = router
        self._recent = recent
        self._clock = clock
        self._wall_clock = wall_clock
        self._others: dict[str, tuple[float, dict[str, list[Dispatch]]]] = {}
        self._was_empty = True
        self.malformed = 0

    @property
    def holders(self) -> set[str]:
        """Incarnations of the workers that other routers' last reports name."""
        return {name for _, by_worker in self._others.values() for name in by_worker}

    def unseen(self, incarnation: str, since_s: float) -> Unseen:
        """Returns what other routers sent to a worker since a moment its figures do not cover."""
        if not self._others:
            return NOTHING_UNSEEN
        requests = tokens = 0
        oldest_s = self._clock() - REPORT_LIFE_S
        for taken_at_s, by_worker in self._others.values():
            if taken_at_s < oldest_s:
                continue
            for dispatch in by_worker.get(incarnation, ()):
                if dispatch.sent_at_s >= since_s:
                    requests += 1
                    tokens += dispatch.tokens
        return Unseen(requests, tokens)

    async def run(self) -> None:
        """Publishes and reads until cancelled; outlives any outage of Redis."""
        async with running(self._publish()):
            await self._follow()

    async def publish_once(self) -> None:
        """Reports this router's recent dispatches; nothing while there are none to tell of."""
        dispatches = self._recent(self._clock() - RECENT_S)
        if not dispatches and self._was_empty:
            return
        self._was_empty = not dispatches
        offset_s = self._wall_clock() - self._clock()
        report = _Report(
            self._router,
            self._wall_clock(),
            [(it.incarnation, it.sent_at_s + offset_s, it.tokens) for it in dispatches],
        )
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.xadd(
            keys.credits(), {_REPORT_FIELD: _REPORT.dump_json(report)}, maxlen=_KEPT_REPORTS
        )
        pipeline.expire(keys.credits(), _STREAM_TTL_S)
        await pipeline.execute()

    def take(self, data: bytes) -> None:
        """Takes one report; what cannot be read is counted and skipped."""
        try:
            report = _REPORT.validate_json(data)
        except ValueError:
            self.malformed += 1
            return
        if report.router == self._router:
            return
        offset_s = self._wall_clock() - self._clock()
        by_worker: dict[str, list[Dispatch]] = {}
        for incarnation, sent_at_s, tokens in report.dispatches:
            dispatch = Dispatch(incarnation, sent_at_s - offset_s, tokens)
            by_worker.setdefault(incarnation, []).append(dispatch)
        self._others[report.router] = (report.taken_at_s - offset_s, by_worker)
        self._forget_silent()

    def _forget_silent(self) -> None:
        oldest_s = self._clock() - REPORT_LIFE_S
        for router in [name for name, (at_s, _) in self._others.items() if at_s < oldest_s]:
            del self._others[router]

    async def _publish(self) -> None:
        while True:
            try:
                await self.publish_once()
            except REDIS_ERRORS as error:
                logger.debug("credits not told: %s", error)
                await asyncio.sleep(_RETRY_S)
            await asyncio.sleep(PUBLISH_EVERY_S)

    async def _follow(self) -> None:
        cursor: bytes | str = "$"
        while True:
            try:
                reply = await read_streams(
                    self._redis, {keys.credits(): cursor}, _KEPT_REPORTS, REPORT_LIFE_S
                )
            except REDIS_ERRORS as error:
                logger.debug("credits not read: %s", error)
                cursor = "$"
                await asyncio.sleep(_RETRY_S)
                continue
            for entry in reply.get(keys.credits(), ()):
                cursor = entry.entry_id
                for data in entry.fields.values():
                    self.take(data)
