"""Traffic counters through Redis: each router writes its own, the autoscaler adds them up."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence

from pydantic import TypeAdapter
from redis.asyncio import Redis

from baton.state import keys
from baton.state.connect import REDIS_ERRORS
from baton.traffic import Traffic

logger = logging.getLogger(__name__)

PUBLISH_EVERY_S = 1.0
TRAFFIC_TTL_S = 10.0

_TRAFFIC = TypeAdapter(Traffic)


class TrafficMeter:
    """Counts one router's traffic. `waiting` tells how many requests wait for a permit now."""

    def __init__(self, offload_above_tokens: int, waiting: Callable[[], int] = lambda: 0) -> None:
        self._above = offload_above_tokens
        self._waiting = waiting
        self._counts: Counter[str] = Counter()

    def offered(self, uncached_tokens: int) -> None:
        """Counts a request that arrived, whatever becomes of it."""
        where = "remote" if uncached_tokens > self._above else "local"
        self._counts[f"{where}_requests"] += 1
        self._counts[f"{where}_tokens"] += uncached_tokens

    def ended(self, *, is_met: bool) -> None:
        """Counts a request that ended, and whether it met its limits."""
        self._counts["ended"] += 1
        self._counts["met"] += is_met

    def finished(self, prompt_tokens: int, output_tokens: int) -> None:
        """Counts a request that was answered."""
        self._counts["finished"] += 1
        self._counts["output_tokens"] += output_tokens
        self._counts["context_tokens"] += prompt_tokens + output_tokens // 2

    def read(self) -> Traffic:
        """Returns the counters of now."""
        return Traffic(**self._counts, waiting_requests=self._waiting())

    async def publish(self, redis: Redis, incarnation: str) -> None:
        """Writes the counters once a second until cancelled."""
        while True:
            try:
                report = _TRAFFIC.dump_json(self.read())
                await redis.set(keys.traffic(incarnation), report, px=int(TRAFFIC_TTL_S * 1000))
            except REDIS_ERRORS as error:
                logger.debug("traffic not published error=%s", error)
            await asyncio.sleep(PUBLISH_EVERY_S)


class TrafficReader:
    """Adds up what all routers counted since this reader first saw each; never goes back."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._last: dict[str, Traffic] = {}
        self._total = Traffic()

    async def read(self, incarnations: Sequence[str]) -> Traffic:
        """Returns the sum over the routers that live. Raises what Redis raises."""
        waiting = 0
        wanted = [keys.traffic(name) for name in incarnations]
        values = await self._redis.mget(wanted) if wanted else []
        for name, value in zip(incarnations, values, strict=True):
            if not isinstance(value, bytes):
                continue
            now = self._decode(value)
            if now is None:
                continue
            added = now.since(self._last.get(name, now))
            waiting += added.waiting_requests
            self._total = self._total.plus(added)
            self._last[name] = now
        self._last = {name: self._last[name] for name in incarnations if name in self._last}
        return Traffic(
            **{
                **{name: getattr(self._total, name) for name in Traffic.__slots__},
                "waiting_requests": waiting,
            }
        )

    def _decode(self, value: bytes) -> Traffic | None:
        try:
            return _TRAFFIC.validate_json(value)
        except ValueError as error:
            logger.warning("unreadable traffic report skipped: %s", error)
            return None
