"""Pool sizes set by hand, kept in Redis so that they outlive the leader."""

from collections.abc import Mapping
from typing import cast

from redis.asyncio import Redis

from baton.errors import InvalidRequestError
from baton.state import keys
from services.autoscaler.state import Pool

OVERRIDE_TTL_S = 24 * 3600
MAX_REPLICAS = 4096


class Overrides:
    """Reads and writes the overrides. Methods raise what Redis raises."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def read(self) -> Mapping[Pool, int]:
        """Returns the sizes that are set."""
        # The client's type covers decoded replies too; ours are bytes.
        values = cast("dict[bytes, bytes]", await self._redis.hgetall(keys.autoscaler_override()))
        return {Pool(name.decode()): int(size) for name, size in values.items()}

    async def set(self, pool: Pool, replicas: int | None) -> None:
        """Sets a size, or gives the pool back to the policy.

        Raises InvalidRequestError for a size that cannot be meant.
        """
        key = keys.autoscaler_override()
        if replicas is None:
            await self._redis.hdel(key, pool.value)
            return
        if replicas > MAX_REPLICAS:
            raise InvalidRequestError(f"at most {MAX_REPLICAS} workers", field="replicas")
        await self._redis.hset(key, pool.value, str(replicas))
        await self._redis.expire(key, OVERRIDE_TTL_S)
