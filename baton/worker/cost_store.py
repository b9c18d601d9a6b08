"""Fitted costs in Redis, by model and device: a worker that starts is warm at once.

Workers of one model on one kind of device share what they know: each keeps the fits that it has
enough samples for, and takes over those that it lacks, such as a decode worker that never yet
computed a prompt. The last one to write wins, which is as good as any: all of them measured.
"""

import asyncio
import json
import logging
from typing import Any, cast

from redis.asyncio import Redis

from baton.latency import TRUSTED_SAMPLES, OnlineFit
from baton.state import keys
from baton.state.connect import REDIS_ERRORS
from baton.worker.costs import CostBook

logger = logging.getLogger(__name__)

TTL_S = 24 * 3600
EXCHANGE_EVERY_S = 10.0


class CostStore:
    """Exchanges one worker's fits with those of its like."""

    def __init__(self, redis: Redis, book: CostBook, model: str, device: str) -> None:
        self._redis = redis
        self._book = book
        self._key = keys.costs(model, device)
        self._stored: dict[str, int] = {}

    async def run(self) -> None:
        """Exchanges now and then until cancelled; without Redis the worker's own fits remain."""
        while True:
            await asyncio.sleep(EXCHANGE_EVERY_S)
            await self.exchange()

    async def exchange(self) -> None:
        """Takes over what this worker lacks, then keeps what it learnt."""
        try:
            await self._load()
            await self._keep()
        except REDIS_ERRORS as error:
            logger.debug("costs not exchanged: %s", error)

    async def _load(self) -> None:
        # The client's type covers decoded replies too; ours are bytes.
        stored = cast("dict[bytes, bytes]", await self._redis.hgetall(self._key))
        for name, fit in self._book.fits().items():
            state = stored.get(name.encode())
            if state is None or fit.samples >= TRUSTED_SAMPLES:
                continue
            try:
                known = OnlineFit.restore(fit.defaults, json.loads(state))
            except (KeyError, TypeError, ValueError) as error:
                logger.warning(
                    "unreadable costs skipped key=%s field=%s: %s", self._key, name, error
                )
                continue
            self._book.adopt(name, known)
            self._stored[name] = known.samples

    async def _keep(self) -> None:
        fits = self._book.fits()
        # The client's type wants the widest mapping there is.
        learnt: dict[Any, Any] = {
            name: json.dumps(fit.state())
            for name, fit in fits.items()
            if fit.samples >= TRUSTED_SAMPLES and fit.samples != self._stored.get(name)
        }
        if not learnt:
            return
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.hset(self._key, mapping=learnt)
        pipeline.expire(self._key, TTL_S)
        await pipeline.execute()
        self._stored |= {name: fits[name].samples for name in learnt}
