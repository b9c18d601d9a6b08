"""Writes the mesh's traffic as a trace in Mooncake's schema, without content."""

import heapq
import json
import time
from collections.abc import Callable
from typing import TextIO, cast

from redis.asyncio import Redis

from baton.state import keys
from baton.state.finished import BLOCK_TOKENS, WANTED_S, FinishedRequest
from baton.state.streams import read_streams

_BATCH = 500
_WAIT_S = 0.5


class TraceWriter:
    """Turns requests into lines by arrival: times from the first one, hashes to small numbers.

    Requests come as they end, so each is kept for `window_s` after its arrival until those that
    arrived before it have ended, too. A prompt's last block, which is not full, is nobody else's
    and gets a number of its own.
    """

    def __init__(self, out: TextIO, window_s: float = 60.0) -> None:
        self.written = 0
        self._out = out
        self._window_s = window_s
        self._waiting: list[tuple[float, int, FinishedRequest]] = []
        self._taken = 0
        self._ids: dict[int, int] = {}
        self._next = 0
        self._first_s: float | None = None

    def take(self, request: FinishedRequest) -> None:
        """Takes a request that ended."""
        heapq.heappush(self._waiting, (request.arrived_at_s, self._taken, request))
        self._taken += 1

    def write(self, now_s: float) -> None:
        """Writes those that arrived longer ago than the window; infinity writes all."""
        while self._waiting and self._waiting[0][0] <= now_s - self._window_s:
            self._line(heapq.heappop(self._waiting)[2])

    def _line(self, request: FinishedRequest) -> None:
        first_s = self._first_s = request.arrived_at_s if self._first_s is None else self._first_s
        ids = [self._id_of(block) for block in request.hashes]
        if request.prompt_tokens % BLOCK_TOKENS:
            ids.append(self._new_id())
        line = {
            "timestamp": max(0, round(1e3 * (request.arrived_at_s - first_s))),
            "input_length": request.prompt_tokens,
            "output_length": request.output_tokens,
            "hash_ids": ids,
        }
        self._out.write(json.dumps(line) + "\n")
        self.written += 1

    def _id_of(self, block: int) -> int:
        if block not in self._ids:
            self._ids[block] = self._new_id()
        return self._ids[block]

    def _new_id(self) -> int:
        self._next += 1
        return self._next - 1


async def record(
    redis: Redis,
    writer: TraceWriter,
    stops: Callable[[], bool],
    clock: Callable[[], float] = time.time,
) -> None:
    """Asks routers to tell what ends and writes it until `stops` says so.

    `clock` is in seconds since 1970, as arrivals are.
    """
    position: bytes | str = await _newest(redis)
    renewed_s = float("-inf")
    while not stops():
        now_s = clock()
        if now_s - renewed_s > WANTED_S / 3:
            await redis.set(keys.recording(), b"1", px=round(1e3 * WANTED_S))
            renewed_s = now_s
        found = await read_streams(redis, {keys.finished(): position}, _BATCH, _WAIT_S)
        for entry in found.get(keys.finished(), ()):
            position = entry.entry_id
            writer.take(FinishedRequest.parse(entry.fields))
        writer.write(now_s)
    writer.write(float("inf"))
    await redis.delete(keys.recording())


async def _newest(redis: Redis) -> bytes | str:
    """Returns the stream's end: "$" would miss what comes between two reads."""
    newest = cast("list[tuple[bytes, object]]", await redis.xrevrange(keys.finished(), count=1))
    return newest[0][0] if newest else "0"
