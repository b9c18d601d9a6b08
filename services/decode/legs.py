"""Both legs of a request between engines that meet in rooms: dispatched at once, failed together.

The prefill leg cannot end before the decode engine came into the room, and the decode leg cannot
begin before the prefill engine computed. So both start at the same time, the first failure of
either ends the other, and only the decode leg's first token says that the KV arrived.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from baton.engine.base import Prefilled, TokenEvent
from baton.engine.rooms import RENDEZVOUS_CHANGED, RoomEngine, new_room
from baton.errors import (
    BatonError,
    CancelledByPeerError,
    InvalidRequestError,
    PreconditionError,
    TransferError,
)
from baton.requests import EngineRequest
from baton.rpc.link import LinkPool
from baton.rpc.links import PREFILL_LINK
from baton.v1 import prefill_link_pb2
from baton.worker import messages
from services.decode.attempts import AttemptFailed
from services.decode.job import Job
from services.decode.pairing import PrefillWorker
from services.decode.prefill_result import result, to_prefilled
from services.decode.remote import PREFILL_TIMEOUT_S
from services.decode.room_pairs import RoomPairs


@dataclass(frozen=True, slots=True)
class Met:
    """A request whose KV arrived.

    `rest` are the events after `first`. `total_s` is from dispatching to the first token.
    """

    first: TokenEvent
    rest: AsyncGenerator[TokenEvent, None]
    total_s: float
    done: "asyncio.Future[prefill_link_pb2.PrefillDone]"

    @property
    def prefill(self) -> Prefilled | None:
        """What the prefill leg told; None while it did not, or when it failed after all.

        It tells about 10 ms after the KV arrived (seen on an H100): no first token waits for that.
        """
        if not self.done.done() or self.done.cancelled() or self.done.exception() is not None:
            return None
        return to_prefilled(self.done.result())


class Legs:
    """Dispatches both legs from one decode worker."""

    def __init__(self, engine: RoomEngine, pairs: RoomPairs) -> None:
        self._engine = engine
        self._pairs = pairs
        self._links = LinkPool(PREFILL_LINK)
        pairs.prove = self._prove

    async def close_idle(self) -> None:
        """Closes links that nobody used for a while."""
        await self._links.close_idle()

    async def close(self) -> None:
        """Closes all links."""
        await self._links.close()

    @asynccontextmanager
    async def meet(self, job: Job, worker: PrefillWorker) -> AsyncIterator[Met]:
        """Runs both legs; leaving stops what is left of them.

        Raises AttemptFailed when no first token came. Errors after it are the generation's own.
        """
        has_met = False
        try:
            async with AsyncExitStack() as held:
                try:
                    met = await held.enter_async_context(self._meet(job, worker))
                except PreconditionError as error:
                    if error.reason != RENDEZVOUS_CHANGED:
                        raise
                    # The engine was started again, and is met where it is now.
                    met = await held.enter_async_context(self._meet(job, worker))
                has_met = True
                yield met
        except BatonError as error:
            if has_met or isinstance(error, InvalidRequestError):
                raise  # nobody else would serve it either
            raise AttemptFailed(worker.worker_id, error) from error

    @asynccontextmanager
    async def _meet(self, job: Job, worker: PrefillWorker) -> AsyncIterator[Met]:
        async with (
            self._pairs.using(worker) as rendezvous,
            self._both(job, worker, rendezvous) as met,
        ):
            yield met

    @asynccontextmanager
    async def _both(self, job: Job, worker: PrefillWorker, rendezvous: str) -> AsyncIterator[Met]:
        started_s, left_s = time.monotonic(), job.time_left_s()
        room = new_room(rendezvous)
        start = messages.prefill_start(job.request, room)
        call = self._links.link(worker.address).open(
            prefill_link_pb2.PrefillCommand(start=start),
            timeout_s=PREFILL_TIMEOUT_S if left_s is None else left_s,
            traceparent=job.traceparent,
        )
        async with AsyncExitStack() as held:
            # Leaving cancels whichever leg still runs, and waits until its engine let go.
            await held.enter_async_context(call)
            await asyncio.sleep(0)  # the message leaves before the leg here is even begun
            events = self._engine.generate_from_room(job.request, room)
            await held.enter_async_context(aclosing(events))
            done = asyncio.ensure_future(result(call))
            first = asyncio.ensure_future(anext(events))
            try:
                event = await _first_token(first, done)
                yield Met(event, events, time.monotonic() - started_s, done)
            finally:
                call.request_cancel()
                for leg in (first, done):
                    leg.cancel()
                await asyncio.gather(first, done, return_exceptions=True)

    async def _prove(self, request: EngineRequest, worker: PrefillWorker, rendezvous: str) -> None:
        async with self._both(Job(request), worker, rendezvous) as met:
            async for _ in met.rest:
                pass


async def _first_token(
    first: "asyncio.Future[TokenEvent]", done: "asyncio.Future[prefill_link_pb2.PrefillDone]"
) -> TokenEvent:
    """Returns the decode leg's first event; raises what failed first, the cause of two."""
    legs: list[asyncio.Future[Any]] = [first, done]
    await asyncio.wait(legs, return_when=asyncio.FIRST_COMPLETED)
    if not first.done() and done.exception() is None:
        await asyncio.wait([first])  # the prefill leg is through, which proves nothing
    if not first.done() or (isinstance(first.exception(), BatonError) and _is_cause(done)):
        error = done.exception()
        assert error is not None
        raise error
    try:
        return first.result()
    except StopAsyncIteration:
        raise TransferError("the generation ended without a token") from None


def _is_cause(done: "asyncio.Future[prefill_link_pb2.PrefillDone]") -> bool:
    """Tells whether the prefill leg failed by itself."""
    if not done.done() or done.cancelled():
        return False
    error = done.exception()
    return error is not None and not isinstance(error, CancelledByPeerError)
