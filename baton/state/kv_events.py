"""Publishes what a worker's prefix cache holds: a stream of changes and the set they lead to.

Entry `n-0` of the stream is change number n, and one transaction writes it together with the set
and the cursor. The transaction also reads the cursor that it replaces: any other value than our
last one means that Redis lost something, and the whole set is written anew.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from baton.engine.base import KvEvent
from baton.state import keys
from baton.state.connect import REDIS_ERRORS
from baton.state.kv_wire import CacheChange, ChangeKind, change_of, encode_changes, set_members
from baton.state.pending import PendingChanges

logger = logging.getLogger(__name__)

BODY_FIELD = b"c"
KEYS_TTL_S = 30.0
FLUSH_INTERVAL_S = 0.02
REFRESH_INTERVAL_S = 1.0
MAX_PENDING_BLOCKS = 1 << 16
MAX_ENTRY_BLOCKS = 4096
UPLOAD_BLOCKS = 2048
STREAM_LENGTH = 4096


class KvEventSource(Protocol):
    """What publishes needs of an Engine."""

    def take_kv_events(self) -> Sequence[KvEvent]:
        """Returns what changed since the last call, in order."""
        ...

    def cached_hashes(self) -> Sequence[int]:
        """Returns the hashes of all reusable blocks now."""
        ...


class KvEventPublisher:
    """Keeps one worker incarnation's cache in Redis; give `run` to the worker's task group.

    `seq` is the number of the last change sent, `resyncs` how often the whole set was written.
    """

    def __init__(
        self,
        redis: Redis,
        incarnation: str,
        source: KvEventSource,
        *,
        keys_ttl_s: float = KEYS_TTL_S,
        flush_interval_s: float = FLUSH_INTERVAL_S,
        max_pending_blocks: int = MAX_PENDING_BLOCKS,
        stream_length: int = STREAM_LENGTH,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis = redis
        self._source = source
        self._ttl_ms = int(keys_ttl_s * 1000)
        self._flush_interval_s = flush_interval_s
        self._stream_length = stream_length
        self._clock = clock
        self._stream = keys.kv_events(incarnation)
        self._blocks = keys.kv_blocks(incarnation)
        self._staging = keys.kv_staging(incarnation)
        self._cursor = keys.kv_cursor(incarnation)
        self._pending = PendingChanges(max_pending_blocks)
        self._sending: list[CacheChange] = []
        self._needs_resync = True
        self._refresh_at_s = 0.0
        self.incarnation = incarnation
        self.seq = 0
        self.resyncs = 0
        self.connected = True

    async def run(self) -> None:
        """Publishes until cancelled; while Redis is away changes wait, within bounds."""
        while True:
            try:
                await self.flush()
            except REDIS_ERRORS as error:
                if self.connected:
                    logger.warning("cache changes wait for Redis: %s", error)
                self.connected = False
            else:
                self.connected = True
            await asyncio.sleep(self._flush_interval_s)

    async def flush(self) -> None:
        """Publishes everything that changed so far. Raises one of REDIS_ERRORS."""
        self._collect()
        while not self._needs_resync and (self._sending or self._pending):
            await self._send()
        if self._needs_resync:
            await self._resync()
        elif self._clock() >= self._refresh_at_s:
            await self._refresh()

    async def remove(self) -> None:
        """Deletes the worker's keys. Raises one of REDIS_ERRORS; then they run out."""
        await self._redis.unlink(self._stream, self._blocks, self._staging, self._cursor)

    def _collect(self) -> None:
        self._pending.add(map(change_of, self._source.take_kv_events()))
        if self._pending.overflowed:
            self._needs_resync = True

    async def _send(self) -> None:
        """Sends the next entry; an unknown outcome sends the very same one again."""
        if not self._sending:
            self._sending = self._pending.take(MAX_ENTRY_BLOCKS)
            self.seq += 1
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.get(self._cursor)
        self._append_entry(pipeline, self._sending)
        for change in self._sending:
            self._update_set(pipeline, change)
        self._finish(pipeline)
        results = await pipeline.execute(raise_on_error=False)
        self._sending = []
        self._needs_resync = not self._is_continuous(results)

    def _is_continuous(self, results: Sequence[object]) -> bool:
        if results[0] == b"%d" % self.seq:
            # An earlier try of this entry arrived and only its answer was lost.
            return True
        expected = b"%d" % (self.seq - 1)
        return results[0] == expected and not any(isinstance(it, Exception) for it in results)

    def _append_entry(self, pipeline: Pipeline, changes: Sequence[CacheChange]) -> None:
        pipeline.xadd(
            self._stream,
            {BODY_FIELD: encode_changes(changes)},
            id=f"{self.seq}-0",
            maxlen=self._stream_length,
            approximate=True,
        )

    def _update_set(self, pipeline: Pipeline, change: CacheChange) -> None:
        match change.kind:
            case ChangeKind.STORED:
                pipeline.sadd(self._blocks, *set_members(change.hashes))
            case ChangeKind.REMOVED:
                pipeline.srem(self._blocks, *set_members(change.hashes))
            case _:
                pipeline.unlink(self._blocks)

    def _finish(self, pipeline: Pipeline) -> None:
        pipeline.set(self._cursor, self.seq, px=self._ttl_ms)
        pipeline.pexpire(self._stream, self._ttl_ms)
        pipeline.pexpire(self._blocks, self._ttl_ms)
        self._refresh_at_s = self._clock() + REFRESH_INTERVAL_S

    async def _resync(self) -> None:
        """Writes the whole set under another name, then swaps it in with a new stream."""
        self._needs_resync = True
        await self._redis.unlink(self._staging)
        self._pending.clear()
        self._sending = []
        # In this order: what happens between the two calls is in the set and comes once more
        # as an event, which changes nothing; the other way round it would be lost.
        self._source.take_kv_events()
        hashes = self._source.cached_hashes()
        await self._upload(hashes)
        self.seq += 1
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.unlink(self._stream, self._blocks)
        if hashes:
            pipeline.rename(self._staging, self._blocks)
        self._append_entry(pipeline, [CacheChange(ChangeKind.REPLACED)])
        self._finish(pipeline)
        await pipeline.execute()
        self._needs_resync = False
        self.resyncs += 1
        logger.info("cache published whole blocks=%d seq=%d", len(hashes), self.seq)

    async def _upload(self, hashes: Sequence[int]) -> None:
        for start in range(0, len(hashes), UPLOAD_BLOCKS):
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.sadd(self._staging, *set_members(hashes[start : start + UPLOAD_BLOCKS]))
            pipeline.pexpire(self._staging, self._ttl_ms)
            await pipeline.execute()

    async def _refresh(self) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.get(self._cursor)
        for name in (self._cursor, self._stream, self._blocks):
            pipeline.pexpire(name, self._ttl_ms)
        cursor, *_ = await pipeline.execute()
        self._refresh_at_s = self._clock() + REFRESH_INTERVAL_S
        if cursor != b"%d" % self.seq:
            await self._resync()
