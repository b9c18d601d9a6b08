"""The event loop's side of a job, and cleaning up however often one is cancelled."""

import asyncio
from collections.abc import Awaitable

from baton.engine.base import TokenEvent
from baton.engine.torch.job import JobEnd


class Inbox:
    """What the engine thread sent for one job. Used on the event loop only.

    Not bounded by itself: a request has at most `max_tokens` events.
    """

    def __init__(self) -> None:
        self._items: asyncio.Queue[TokenEvent | JobEnd] = asyncio.Queue()
        self.ended = asyncio.Event()

    def put(self, item: TokenEvent | JobEnd) -> None:
        """Adds what came from the engine thread."""
        if isinstance(item, JobEnd):
            self.ended.set()
        self._items.put_nowait(item)

    async def get(self) -> TokenEvent | None:
        """Returns the next event, None after the last. Raises what ended the job early."""
        item = await self._items.get()
        if isinstance(item, TokenEvent):
            return item
        if item.error is not None:
            raise item.error
        return None


async def undisturbed(work: Awaitable[None]) -> None:
    """Runs `work` to its end even if the caller is cancelled meanwhile, then says so."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled
