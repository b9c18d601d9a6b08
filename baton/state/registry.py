"""A process's place in the fleet: its lease, its record, the handshake, its figures.

Every beat writes everything again, so a Redis that came back empty is whole after one beat. One
worker id has one holder: a newer incarnation takes the lease over and the older one finds out at
its next beat and stays out.
"""

import asyncio
import enum
import logging
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from redis.asyncio import Redis

from baton.errors import RegistrationError, StartupError
from baton.state import keys, scripts
from baton.state.background import running
from baton.state.connect import REDIS_ERRORS
from baton.state.records import (
    StatsReport,
    WorkerRecord,
    WorkerStats,
    encode_record,
    encode_report,
    fleet_contract,
)

logger = logging.getLogger(__name__)

LEASE_TTL_S = 3.0
"""A process that stops beating is out of the fleet after this long."""

STATS_TTL_S = 10.0
FLEET_EVENTS_LENGTH = 2048
REMOVE_TIMEOUT_S = 1.0


class RegistrationState(enum.Enum):
    """Where a registration stands."""

    NEW = "new"
    JOINED = "joined"
    AWAY = "away"
    """Redis does not answer; the beat goes on and joins again when it does."""
    REFUSED = "refused"
    """The fleet's contract changed while Redis was empty; tried again at each beat."""
    LOST = "lost"
    """Another incarnation has the worker id; final."""


class Registration:
    """Membership in the fleet while entered as an async context manager.

    Entering raises RegistrationError when the worker does not fit the fleet and StartupError when
    Redis does not answer. Leaving removes the worker at once.
    """

    def __init__(self, redis: Redis, record: WorkerRecord, ttl_s: float = LEASE_TTL_S) -> None:
        self._redis = redis
        self._ttl_s = ttl_s
        self._announce_script = redis.register_script(scripts.ANNOUNCE)
        self._remove_script = redis.register_script(scripts.REMOVE)
        self._lost = asyncio.Event()
        self._stack = AsyncExitStack()
        self.record = record
        self.state = RegistrationState.NEW

    @property
    def is_lost(self) -> bool:
        """Tells whether another incarnation took the worker id over."""
        return self._lost.is_set()

    async def wait_lost(self) -> None:
        """Returns when another incarnation took the worker id over; the process should end."""
        await self._lost.wait()

    async def __aenter__(self) -> Self:
        try:
            await self._announce(takeover=True)
        except REDIS_ERRORS as error:
            raise StartupError(
                f"could not register {self.record.worker_id}: Redis says {error}"
            ) from error
        await self._stack.enter_async_context(running(self._beat()))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._stack.__aexit__(kind, error, traceback)
        finally:
            await self._remove()

    async def publish_stats(self, stats: WorkerStats) -> bool:
        """Tells the fleet the worker's figures; returns False when it could not be told.

        Readers judge figures by their age, so an idle worker too publishes twice a second.
        """
        if self.is_lost:
            return False
        record = self.record
        report = encode_report(StatsReport(record.worker_id, record.incarnation, stats))
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.set(keys.stats(record.worker_id), report, px=int(STATS_TTL_S * 1000))
        pipeline.xadd(
            keys.fleet_events(),
            {scripts.STATS_FIELD: report},
            maxlen=FLEET_EVENTS_LENGTH,
            approximate=True,
        )
        try:
            await pipeline.execute()
        except REDIS_ERRORS as error:
            logger.debug("stats not published worker=%s error=%s", record.worker_id, error)
            return False
        return True

    async def _beat(self) -> None:
        while not self.is_lost:
            await asyncio.sleep(self._ttl_s / 3)
            try:
                await self._announce(takeover=False)
            except REDIS_ERRORS as error:
                self._move_to(RegistrationState.AWAY, f"Redis: {error}")
            except RegistrationError as error:
                self._move_to(RegistrationState.REFUSED, error.message)

    async def _announce(self, *, takeover: bool) -> None:
        record = self.record
        contract = fleet_contract(record)
        reply: list[bytes] = await self._announce_script(
            keys=[
                keys.lease(record.worker_id),
                keys.record(record.worker_id),
                keys.leases(),
                keys.epoch(),
                keys.fleet_events(),
                keys.contract(record.model),
            ],
            args=[
                record.incarnation,
                record.worker_id,
                encode_record(record),
                int(self._ttl_s * 1000),
                int(takeover),
                FLEET_EVENTS_LENGTH,
                *(text for pair in contract.items() for text in pair),
            ],
        )
        self._judge([part.decode(errors="replace") for part in reply], contract)

    def _judge(self, reply: list[str], contract: dict[str, str]) -> None:
        match reply:
            case ["OK"]:
                self._move_to(RegistrationState.JOINED, "")
            case ["LOST", holder]:
                self._move_to(RegistrationState.LOST, f"incarnation {holder} took over")
                self._lost.set()
            case ["MISMATCH", field, expected]:
                raise self._refusal(field, expected, contract[field])
            case _:
                raise AssertionError(f"unknown reply of the registration script: {reply}")

    def _refusal(self, field: str, expected: str, got: str) -> RegistrationError:
        record = self.record
        return RegistrationError(
            f"worker {record.worker_id} does not fit the fleet of model {record.model!r}: "
            f"{field} is expected to be {expected!r}, got {got!r}. Start it with the fleet's "
            f"value, or stop the model's other workers and wait {self._ttl_s:g} s.",
            field=field,
        )

    def _move_to(self, state: RegistrationState, why: str) -> None:
        if state is self.state:
            return
        level = logging.INFO if state is RegistrationState.JOINED else logging.WARNING
        logger.log(
            level,
            "registration %s worker=%s incarnation=%s %s",
            state.value,
            self.record.worker_id,
            self.record.incarnation,
            why,
        )
        self.state = state

    async def _remove(self) -> None:
        record = self.record
        try:
            async with asyncio.timeout(REMOVE_TIMEOUT_S):
                await self._remove_script(
                    keys=[
                        keys.lease(record.worker_id),
                        keys.record(record.worker_id),
                        keys.stats(record.worker_id),
                        keys.leases(),
                        keys.fleet_events(),
                    ],
                    args=[record.incarnation, record.worker_id, FLEET_EVENTS_LENGTH],
                )
        except (*REDIS_ERRORS, TimeoutError) as error:
            logger.info(
                "lease left to run out worker=%s error=%s", record.worker_id, error or "timed out"
            )
