"""The fleet as one reader knows it: who lives, their latest figures and the age of both.

One loop reads the stream of fleet events (in batches, which costs a fraction of a message each)
and once a second the registry itself, which is the truth. When Redis is away the last view stays
and its age grows. When Redis comes back, with its data or without, a worker that is missing has
one lease time to show up before it is taken for dead.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from redis.asyncio import Redis

from baton.errors import StartupError
from baton.state import keys, scripts
from baton.state.connect import REDIS_ERRORS
from baton.state.members import Members, WorkerView
from baton.state.records import (
    StatsReport,
    WorkerRecord,
    WorkerRole,
    decode_record,
    decode_report,
)
from baton.state.registry import LEASE_TTL_S
from baton.state.streams import read_streams

logger = logging.getLogger(__name__)

T = TypeVar("T")

SCAN_INTERVAL_S = 1.0
COALESCE_S = 0.02
"""Pause between two reads, so that a busy fleet's events come in batches."""

RETRY_S = 0.1
EVENTS_PER_READ = 1024


class FleetView:
    """All live processes of the fleet; give `run` to the service's task group.

    `clock` is monotonic, `wall_clock` in seconds since 1970. The age of figures compares the
    worker's wall clock with the reader's, so machines keep their clocks in step. `malformed`
    counts what was skipped because it could not be read.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        lease_ttl_s: float = LEASE_TTL_S,
        scan_interval_s: float = SCAN_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._redis = redis
        self._lease_ttl_s = lease_ttl_s
        self._scan_interval_s = scan_interval_s
        self._clock = clock
        self._wall_clock = wall_clock
        self._members = Members()
        self._synced = asyncio.Event()
        self._epoch: bytes | None = None
        self._cursor = b"0"
        self._confirmed_at_s = -math.inf
        self._trust_absence_at_s = -math.inf
        self._next_scan_s = -math.inf
        self.connected = False
        self.malformed = 0

    def workers(self, role: WorkerRole) -> Sequence[WorkerView]:
        """Returns the live processes of a role, by worker id."""
        return self._members.of_role(role)

    def worker(self, worker_id: str) -> WorkerView | None:
        """Returns the live process of that id, if there is one."""
        return self._members.get(worker_id)

    @property
    def generation(self) -> int:
        """Differs after anybody joined or left."""
        return self._members.generation

    async def wait_change(self, generation: int) -> int:
        """Returns the current `generation` once it differs from the one given."""
        return await self._members.wait_change(generation)

    @property
    def age_s(self) -> float:
        """Seconds since Redis last confirmed who lives; infinite before the first time."""
        return self._clock() - self._confirmed_at_s

    @property
    def is_fresh(self) -> bool:
        """Tells whether the view is confirmed within a lease's life."""
        return self.connected and self.age_s <= self._lease_ttl_s

    async def wait_synced(self, timeout_s: float = 5.0) -> None:
        """Returns once the registry was read. Raises StartupError when that takes too long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._synced.wait()
        except TimeoutError as error:
            raise StartupError(
                f"the worker registry could not be read from Redis in {timeout_s:g} s; "
                "see whether Redis runs and answers"
            ) from error

    async def run(self) -> None:
        """Keeps the view current until cancelled."""
        while True:
            try:
                if self._clock() >= self._next_scan_s:
                    await self._scan()
                await self._read_events()
            except REDIS_ERRORS as error:
                self._cut_off(error)
                await asyncio.sleep(RETRY_S)
            else:
                await asyncio.sleep(COALESCE_S)

    def _cut_off(self, error: Exception) -> None:
        if self.connected:
            logger.warning("fleet view cut off from Redis, keeping the last one: %s", error)
        self.connected = False
        self._next_scan_s = -math.inf

    async def _scan(self) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.get(keys.epoch())
        pipeline.zrange(keys.leases(), 0, -1)
        pipeline.xrevrange(keys.fleet_events(), count=1)
        epoch, members, newest = await pipeline.execute()
        worker_ids = [member.decode(errors="replace") for member in members]
        records = await self._fetch(map(keys.record, worker_ids), decode_record)
        reports = await self._fetch(map(keys.stats, worker_ids), decode_report)
        if not self.connected or epoch != self._epoch:
            self._start_over(epoch, newest[0][0] if newest else b"0")
        self._confirm(records)
        for report in reports:
            self._take_report(report)
        self._synced.set()

    async def _fetch(self, names: "map[str]", decode: Callable[[bytes], T]) -> list[T]:
        wanted = list(names)
        if not wanted:
            return []
        # The client's type covers decoded replies too; ours are bytes.
        values = cast("list[bytes | None]", await self._redis.mget(wanted))
        found = [self._decode(decode, value) for value in values if value is not None]
        return [value for value in found if value is not None]

    def _start_over(self, epoch: bytes | None, cursor: bytes) -> None:
        """After an outage or a loss of data, absence proves nothing for one lease time."""
        now_s = self._clock()
        self._trust_absence_at_s = now_s + self._lease_ttl_s if self._synced.is_set() else now_s
        logger.info("fleet view reads Redis, data=%s", "known" if epoch == self._epoch else "new")
        self._epoch = epoch
        self._cursor = cursor

    def _confirm(self, records: Sequence[WorkerRecord]) -> None:
        now_s = self._clock()
        self.connected = True
        self._confirmed_at_s = now_s
        self._next_scan_s = now_s + self._scan_interval_s
        for record in records:
            self._members.join(record)
        if now_s >= self._trust_absence_at_s:
            live = {record.worker_id for record in records}
            for view in [it for it in self._members if it.record.worker_id not in live]:
                self._members.leave(view.record.worker_id, "lease ran out")

    async def _read_events(self) -> None:
        wait_s = self._next_scan_s - self._clock()
        positions = {keys.fleet_events(): self._cursor}
        reply = await read_streams(self._redis, positions, EVENTS_PER_READ, wait_s)
        for entry in reply.get(keys.fleet_events(), ()):
            self._cursor = entry.entry_id
            for field, value in entry.fields.items():
                self._apply(field.decode(errors="replace"), value)

    def _apply(self, field: str, value: bytes) -> None:
        match field:
            case scripts.STATS_FIELD:
                if report := self._decode(decode_report, value):
                    self._take_report(report)
            case scripts.JOINED_FIELD:
                if record := self._decode(decode_record, value):
                    self._members.join(record)
            case scripts.LEFT_FIELD:
                self._members.leave_incarnation(value.decode(errors="replace"), "said goodbye")
            case _:
                self.malformed += 1

    def _take_report(self, report: StatsReport) -> None:
        delay_s = max(0.0, self._wall_clock() - report.stats.taken_at_s)
        self._members.report(report, self._clock() - delay_s)

    def _decode(self, decode: Callable[[bytes], T], data: bytes) -> T | None:
        try:
            return decode(data)
        except ValueError as error:
            self.malformed += 1
            logger.warning("unreadable fleet entry skipped: %s", error)
            return None
