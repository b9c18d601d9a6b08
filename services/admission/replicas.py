"""Several admission services share one limit: what each tells the others, and what it may grant."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from pydantic import NonNegativeFloat, NonNegativeInt, TypeAdapter
from redis.asyncio import Redis

from baton.state.background import running
from baton.state.connect import REDIS_ERRORS
from baton.state.shared_quota import give_back, reserve
from services.admission.desk import PermitDesk
from services.admission.ledger import NOBODY_ELSE, Elsewhere
from services.admission.policy import Streams

logger = logging.getLogger(__name__)

EXCHANGE_EVERY_S = 0.05

SPARE_SHARE = 16
"""Beside others, one part in so many of all permits is reserved ahead, so that few wait for it;
nothing while others have requests waiting."""

LEAST_SPARE = 2


@dataclass(frozen=True, slots=True)
class _Report:
    """What one service's permits amount to; `tenants` are the requests inside of limited ones."""

    waiting: NonNegativeInt
    prefilling: NonNegativeInt
    decoding: NonNegativeInt
    coming_tokens: NonNegativeInt
    backlog_s: NonNegativeFloat
    sequences: NonNegativeFloat
    tokens: NonNegativeFloat
    tenants: dict[str, NonNegativeInt]


_REPORT = TypeAdapter(_Report)


class Replicas:
    """Keeps this service's part of the permits and knows the others' state.

    Alone it may grant everything, so that it needs no Redis. Beside others it grants only what it
    reserved; when Redis is away it keeps the part that it had.
    """

    def __init__(self, redis: Redis, name: str, desk: PermitDesk) -> None:
        self._redis = redis
        self._name = name
        self._desk = desk
        self._others = 0
        self._others_wait = False
        self.malformed = 0

    @asynccontextmanager
    async def taking_part(self) -> AsyncIterator[None]:
        """Exchanges until the block ends, then gives the part back."""
        try:
            async with running(self._run()):
                yield
        finally:
            with suppress(*REDIS_ERRORS):
                await give_back(self._redis, self._name)

    async def exchange_or_go_on(self) -> None:
        """Exchanges once; without Redis the last state stays."""
        try:
            await self.exchange()
        except REDIS_ERRORS as error:
            logger.debug("admission state not exchanged: %s", error)

    async def exchange(self) -> None:
        """Tells the own state, reserves, and takes in what the others told."""
        desk = self._desk
        load, ledger = desk.door.load(desk.now_s), desk.door.ledger
        reserved = await reserve(
            self._redis,
            self._name,
            limit=load.capacity,
            wanted=self._wanted(load.capacity, ledger.permits, len(desk.door.room)),
            in_use=ledger.permits,
            report=self._report(),
        )
        reports = list(self._readable(reserved.reports))
        self._others = len(reserved.reports)
        self._others_wait = any(report.waiting for report in reports)
        desk.door.tenants.replicas = 1 + self._others
        desk.door.tenants.elsewhere = _tenants(reports)
        desk.set_others(_summed(reports), reserved.part if self._others else None)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(EXCHANGE_EVERY_S)
            await self.exchange_or_go_on()

    def _wanted(self, capacity: int, permits: int, waiting: int) -> int:
        if not self._others:
            return capacity
        spare = 0 if self._others_wait else max(LEAST_SPARE, capacity // SPARE_SHARE)
        return permits + waiting + spare

    def _report(self) -> bytes:
        totals, gate = self._desk.totals(), self._desk.door.tenants
        report = _Report(
            len(self._desk.door.room),
            totals.prefilling,
            totals.decoding,
            totals.coming_tokens,
            totals.backlog_s,
            totals.streams.sequences,
            totals.streams.tokens,
            {name: count for name, count in gate.inside.items() if gate.limit_of(name).concurrent},
        )
        return _REPORT.dump_json(report)

    def _readable(self, reports: Iterable[bytes]) -> Iterable[_Report]:
        for data in reports:
            try:
                yield _REPORT.validate_json(data)
            except ValueError:
                self.malformed += 1


def _summed(reports: Iterable[_Report]) -> Elsewhere:
    total = NOBODY_ELSE
    for it in reports:
        streams = Streams(it.sequences, it.tokens)
        one = Elsewhere(it.prefilling, it.decoding, it.coming_tokens, it.backlog_s, streams)
        total = total.plus(one)
    return total


def _tenants(reports: Iterable[_Report]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for report in reports:
        total.update(report.tenants)
    return dict(total)
