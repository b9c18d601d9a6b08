"""Reading several Redis streams at once, with types."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

from redis.asyncio import Redis


class StreamEntry(NamedTuple):
    """One entry; `entry_id` is the position to read on from."""

    entry_id: bytes
    fields: Mapping[bytes, bytes]


async def read_streams(
    redis: Redis, positions: Mapping[str, bytes | str], count: int, block_s: float
) -> dict[str, Sequence[StreamEntry]]:
    """Returns up to `count` entries per stream after its position.

    Waits up to `block_s` seconds while there are none; below a millisecond counts as one.
    """
    reply = await redis.xread(
        dict(positions.items()),
        count=count,
        block=max(1, int(block_s * 1000)),
    )
    # The client types replies for all protocols and decodings; ours is RESP2 with bytes.
    streams = cast("list[tuple[bytes, list[tuple[bytes, dict[bytes, bytes]]]]]", reply or [])
    return {
        name.decode(): [StreamEntry(entry_id, fields) for entry_id, fields in entries]
        for name, entries in streams
    }
