"""One limit that several processes share: each reserves a part, tells its state, and hears others'.

A reservation replaces the one before and runs out by itself, so nothing is counted up and down and
nothing can leak: a process that dies stops renewing, and exactly its part is free again. Redis does
each reservation in one step, so the parts never add up to more than the limit, unless the limit
shrank below what is in use.
"""

from dataclasses import dataclass
from typing import cast

from redis.asyncio import Redis

from baton.state import keys, scripts

RESERVATION_LIFE_S = 1.0


@dataclass(frozen=True, slots=True)
class Reserved:
    """The own part, and what the others that hold parts reported last."""

    part: int
    reports: tuple[bytes, ...]


async def reserve(
    redis: Redis, name: str, limit: int, wanted: int, in_use: int, report: bytes
) -> Reserved:
    """Reserves up to `wanted` of `limit`, at least what is `in_use`; raises Redis' errors."""
    reply = await redis.eval(
        scripts.RESERVE,
        1,
        keys.admission(),
        name,
        str(limit),
        str(wanted),
        str(in_use),
        str(int(RESERVATION_LIFE_S * 1000)),
        report,
    )
    part, *reports = cast("list[bytes]", reply)
    return Reserved(int(part), tuple(reports))


async def give_back(redis: Redis, name: str) -> None:
    """Ends the own reservation; raises Redis' errors."""
    await redis.hdel(keys.admission(), name)
