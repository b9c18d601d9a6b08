"""Requests that ended, in lengths and hashes, for whoever records the mesh's traffic.

Routers write only while a recorder asks for it: it renews a key that soon expires. No text, token
or tenant leaves the router. Hashes are those by which prefixes are found, one per BLOCK_TOKENS.
"""

import asyncio
import json
import struct
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from redis.asyncio import Redis
from redis.exceptions import RedisError
from redis.typing import EncodableT, FieldT

from baton.state import keys

BLOCK_TOKENS = 512
"""Tokens per hash: Mooncake's block. Tokens."""

WANTED_S = 10.0
"""A recorder has to renew its wish within this. Seconds."""

_LOOK_EVERY_S = 0.5
_MAX_PENDING = 4096
_MAX_STREAM = 20_000
_KEEP_S = 600


@dataclass(frozen=True, slots=True)
class FinishedRequest:
    """One request that was served; `arrived_at_s` is in seconds since 1970."""

    arrived_at_s: float
    prompt_tokens: int
    output_tokens: int
    hashes: Sequence[int] = ()

    def fields(self) -> "dict[FieldT, EncodableT]":
        """Returns the request as an entry of the stream."""
        numbers = [self.arrived_at_s, self.prompt_tokens, self.output_tokens]
        return {
            b"request": json.dumps(numbers).encode(),
            b"hashes": struct.pack(f"<{len(self.hashes)}Q", *self.hashes),
        }

    @classmethod
    def parse(cls, fields: Mapping[bytes, bytes]) -> "FinishedRequest":
        """Reads an entry. Raises ValueError for one that is none."""
        packed = fields.get(b"hashes", b"")
        arrived_at_s, prompt, output = json.loads(fields.get(b"request", b""))
        hashes = struct.unpack(f"<{len(packed) // 8}Q", packed[: len(packed) // 8 * 8])
        return cls(float(arrived_at_s), int(prompt), int(output), hashes)


def coarse(hashes: Sequence[int], block_size: int) -> Sequence[int]:
    """Returns one hash per BLOCK_TOKENS of a chain; none where blocks do not add up to that."""
    if not 0 < block_size <= BLOCK_TOKENS or BLOCK_TOKENS % block_size:
        return ()
    # Hashes are chained, so the one at the end of a stretch stands for all before it.
    every = BLOCK_TOKENS // block_size
    return hashes[every - 1 :: every]


class FinishedLog:
    """A router's side: keeps what ended while it is wanted, and writes it now and then."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._pending: deque[FinishedRequest] = deque(maxlen=_MAX_PENDING)
        self.is_wanted = False

    def add(self, request: FinishedRequest) -> None:
        """Takes a request that ended; does nothing while nobody records."""
        if self.is_wanted:
            self._pending.append(request)

    async def run(self) -> NoReturn:
        """Writes until cancelled; while Redis is away the oldest are dropped."""
        while True:
            try:
                self.is_wanted = bool(await self._redis.exists(keys.recording()))
                await self._write()
            except RedisError:
                self.is_wanted = False
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _write(self) -> None:
        if not self._pending:
            return
        pipe = self._redis.pipeline(transaction=False)
        while self._pending:
            fields = self._pending.popleft().fields()
            pipe.xadd(keys.finished(), fields, maxlen=_MAX_STREAM, approximate=True)
        pipe.expire(keys.finished(), _KEEP_S)
        await pipe.execute()
