"""One of several autoscalers acts: who holds the lease in Redis."""

import logging

from redis.asyncio import Redis

from baton.state import keys
from baton.state.connect import REDIS_ERRORS

logger = logging.getLogger(__name__)

LEASE_TTL_S = 5.0
"""A leader that is gone is followed after this long."""

_HOLD = """
-- KEYS leader; ARGV name, ttl in ms
local holder = redis.call('GET', KEYS[1])
if not holder or holder == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  return ARGV[1]
end
return holder
"""

_LEAVE = """
-- KEYS leader; ARGV name
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
"""


class Leadership:
    """Takes the lease when it is free and keeps it. `name` differs from process to process."""

    def __init__(self, redis: Redis, name: str, ttl_s: float = LEASE_TTL_S) -> None:
        self.name = name
        self.leader = ""
        self._ttl_s = ttl_s
        self._hold = redis.register_script(_HOLD)
        self._leave = redis.register_script(_LEAVE)

    @property
    def is_leader(self) -> bool:
        """Tells whether this process held the lease when it last looked."""
        return self.leader == self.name

    async def hold(self) -> bool:
        """Takes or renews the lease where possible. Call it more often than the lease lives.

        Returns whether this process may act until then; without Redis nobody may.
        """
        was_leader = self.is_leader
        try:
            holder: bytes = await self._hold(
                keys=[keys.autoscaler_leader()], args=[self.name, int(self._ttl_s * 1000)]
            )
            self.leader = holder.decode()
        except REDIS_ERRORS as error:
            self.leader = ""
            logger.warning("autoscaler lease not held: %s", error)
        if self.is_leader is not was_leader:
            logger.info("autoscaler leads=%s leader=%s", self.is_leader, self.leader)
        return self.is_leader

    async def leave(self) -> None:
        """Gives the lease up, so that another process need not wait for its end."""
        if not self.is_leader:
            return
        try:
            await self._leave(keys=[keys.autoscaler_leader()], args=[self.name])
        except REDIS_ERRORS as error:
            logger.info("autoscaler lease left to run out: %s", error)
        self.leader = ""
