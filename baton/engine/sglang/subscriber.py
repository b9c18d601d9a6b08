"""Follows the prefix cache's events that SGLang publishes over ZMQ, without missing one."""

import asyncio
import logging
from collections.abc import Callable

import zmq
import zmq.asyncio

from baton.engine.sglang import frames
from baton.engine.sglang.wire import read_batch

logger = logging.getLogger(__name__)

REPLAY_TIMEOUT_S = 2.0
_SEQ_BYTES = 8


async def follow_cache(
    endpoint: str, replay_endpoint: str, report: Callable[[frames.Report], None]
) -> None:
    """Reports every change from the first one on, until cancelled.

    A subscriber that is late misses messages, so what was published before is asked for again.
    Where the publisher's buffer does not reach back far enough, a gap is reported.
    """
    context = zmq.asyncio.Context.instance()
    with context.socket(zmq.SUB) as events:
        events.setsockopt(zmq.SUBSCRIBE, b"")
        events.connect(endpoint)
        follower = _Follower(context, replay_endpoint, report)
        await follower.catch_up()
        while True:
            try:
                async with asyncio.timeout(1.0):
                    _, number, payload = await events.recv_multipart()
            except TimeoutError:
                if not follower.has_begun:
                    await follower.catch_up()
                continue
            await follower.take(int.from_bytes(number, "big"), payload)


class _Follower:
    def __init__(
        self,
        context: zmq.asyncio.Context,
        replay_endpoint: str,
        report: Callable[[frames.Report], None],
    ) -> None:
        self._context = context
        self._replay_endpoint = replay_endpoint
        self._report = report
        self._next = 0

    @property
    def has_begun(self) -> bool:
        """Tells whether any batch was seen."""
        return self._next > 0

    async def take(self, number: int, payload: bytes) -> None:
        """Reports a batch, after those before it that did not come."""
        if number > self._next:
            await self.catch_up()
        self._take_next(number, payload)

    async def catch_up(self) -> None:
        """Reports what the publisher still has from the next batch on."""
        with self._context.socket(zmq.DEALER) as replay:
            replay.connect(self._replay_endpoint)
            await replay.send_multipart([b"", self._next.to_bytes(_SEQ_BYTES, "big")])
            try:
                async with asyncio.timeout(REPLAY_TIMEOUT_S):
                    while True:
                        number, payload = (await replay.recv_multipart())[-2:]
                        if int.from_bytes(number, "big", signed=True) < 0:
                            return
                        self._take_next(int.from_bytes(number, "big"), payload)
            except TimeoutError:
                logger.warning("cache events are not replayed from=%d", self._next)

    def _take_next(self, number: int, payload: bytes) -> None:
        if number < self._next:
            return
        is_gap = number > self._next
        if is_gap:
            logger.warning("cache events lost from=%d to=%d", self._next, number)
        self._next = number + 1
        try:
            report = frames.CacheEvents(read_batch(payload), is_gap)
        except ValueError as error:
            logger.warning("cache events cannot be read number=%d: %s", number, error)
            report = frames.CacheEvents([], is_gap=True)
        self._report(report)
