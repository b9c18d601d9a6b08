"""Fills a router's prefix index from Redis: each worker's set first, then its stream.

The set is read in parts while it may change. That is sound because the cursor is read before it:
every change from the cursor on comes again through the stream, in order, and says the last word
about its blocks. A gap in the sequence, or a set that was replaced, reads that worker's set again
and leaves the others alone. When Redis is away the index stays as it is.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import cast

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from baton.state import keys
from baton.state.connect import REDIS_ERRORS
from baton.state.fleet import FleetView
from baton.state.kv_events import BODY_FIELD
from baton.state.kv_wire import HASH_BYTES, ChangeKind, decode_changes, unpack_hashes
from baton.state.prefix_index import PrefixIndex
from baton.state.records import WorkerRole
from baton.state.streams import StreamEntry, read_streams

logger = logging.getLogger(__name__)

COALESCE_S = 0.02
BLOCK_S = 0.25
RETRY_S = 0.1
LOOK_AGAIN_S = 0.1
REREAD_S = 1.0
"""Least time between two readings of a set whose stream makes no sense."""

ENTRIES_PER_READ = 16
MEMBERS_PER_READ = 4096


class _Follower:
    """Where the reader stands with one worker. `reread_at_s` is when its set is read next."""

    __slots__ = ("incarnation", "reread_at_s", "seq")

    def __init__(self, incarnation: str) -> None:
        self.incarnation = incarnation
        self.seq = 0
        self.reread_at_s = -math.inf

    @property
    def follows(self) -> bool:
        """Tells whether the stream is read, not the set."""
        return self.reread_at_s == math.inf


class IndexReader:
    """Keeps `index` in step with the workers of `fleet`; give `run` to the service's task group.

    `resyncs` counts sets read again because of a gap, `malformed` what could not be read.
    """

    def __init__(
        self,
        redis: Redis,
        fleet: FleetView,
        index: PrefixIndex,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis = redis
        self._fleet = fleet
        self._index = index
        self._clock = clock
        self._followers: dict[str, _Follower] = {}
        self._generation: int | None = None
        self.connected = False
        self.resyncs = 0
        self.malformed = 0

    @property
    def is_synced(self) -> bool:
        """Tells whether each worker's set was looked for and read if there was one."""
        return self._generation == self._fleet.generation and all(
            follower.reread_at_s > -math.inf for follower in self._followers.values()
        )

    async def run(self) -> None:
        """Follows the fleet until cancelled."""
        while True:
            try:
                await self._step()
            except REDIS_ERRORS as error:
                if self.connected:
                    logger.warning("prefix index cut off from Redis, keeping it: %s", error)
                self.connected = False
                await asyncio.sleep(RETRY_S)
            else:
                self.connected = True
                await asyncio.sleep(COALESCE_S)

    async def _step(self) -> None:
        self._follow_fleet()
        for follower in list(self._followers.values()):
            if self._clock() >= follower.reread_at_s:
                await self._read_set(follower)
        await self._read_streams()

    def _follow_fleet(self) -> None:
        if self._generation == self._fleet.generation:
            return
        self._generation = self._fleet.generation
        views = [*self._fleet.workers(WorkerRole.PREFILL), *self._fleet.workers(WorkerRole.DECODE)]
        wanted = {view.record.incarnation for view in views}
        for incarnation in self._followers.keys() - wanted:
            del self._followers[incarnation]
            self._index.drop(incarnation)
        for incarnation in wanted - self._followers.keys():
            self._followers[incarnation] = _Follower(incarnation)
            self._index.add(incarnation)

    async def _read_set(self, follower: _Follower) -> None:
        incarnation = follower.incarnation
        try:
            cursor = await self._redis.get(keys.kv_cursor(incarnation))
            if cursor is None:
                # Nothing is published, or Redis lost it: what is known of the worker stays.
                follower.reread_at_s = self._clock() + LOOK_AGAIN_S
                return
            seq = int(cursor)
            await self._load(incarnation)
            follower.seq = seq
            follower.reread_at_s = math.inf
        except (ResponseError, ValueError) as error:
            self._distrust(follower, error)

    async def _load(self, incarnation: str) -> None:
        name = keys.kv_blocks(incarnation)
        self._index.clear(incarnation)
        position = 0
        while True:
            position, reply = await self._redis.sscan(name, position, count=MEMBERS_PER_READ)
            # The client's type covers decoded replies too; ours are bytes.
            members = cast("list[bytes]", reply)
            sound = [member for member in members if len(member) == HASH_BYTES]
            self.malformed += len(members) - len(sound)
            self._index.store(incarnation, unpack_hashes(b"".join(sound)))
            if position == 0:
                return

    async def _read_streams(self) -> None:
        followed = {
            keys.kv_events(it.incarnation): it for it in self._followers.values() if it.follows
        }
        if not followed:
            await asyncio.sleep(BLOCK_S / 10)
            return
        positions = {name: f"{follower.seq}-0" for name, follower in followed.items()}
        reply = await read_streams(self._redis, positions, ENTRIES_PER_READ, BLOCK_S)
        for name, entries in reply.items():
            self._apply_entries(followed[name], entries)
            await asyncio.sleep(0)

    def _apply_entries(self, follower: _Follower, entries: Sequence[StreamEntry]) -> None:
        try:
            for entry_id, fields in entries:
                seq = int(entry_id.partition(b"-")[0])
                if seq != follower.seq + 1:
                    self._reread(follower, f"gap from {follower.seq} to {seq}")
                if not follower.follows:
                    return
                self._apply_body(follower, fields.get(BODY_FIELD, b""))
                follower.seq = seq
        except ValueError as error:
            self._distrust(follower, error)

    def _apply_body(self, follower: _Follower, body: bytes) -> None:
        for change in decode_changes(body):
            match change.kind:
                case ChangeKind.STORED:
                    self._index.store(follower.incarnation, change.hashes)
                case ChangeKind.REMOVED:
                    self._index.remove(follower.incarnation, change.hashes)
                case ChangeKind.CLEARED:
                    self._index.clear(follower.incarnation)
                case ChangeKind.REPLACED:
                    self._reread(follower, "set replaced")

    def _reread(self, follower: _Follower, why: str) -> None:
        logger.info("prefix index rereads worker incarnation=%s %s", follower.incarnation, why)
        self.resyncs += 1
        follower.reread_at_s = -math.inf

    def _distrust(self, follower: _Follower, error: Exception) -> None:
        logger.warning("cache of %s unreadable: %s", follower.incarnation, error)
        self.malformed += 1
        follower.reread_at_s = self._clock() + REREAD_S
