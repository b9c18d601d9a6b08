"""Who may start work on this worker, and how much of it is running."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from baton.errors import UnavailableError


class WorkGate:
    """Counts running requests; shut before the worker is ready and once it drains."""

    def __init__(self) -> None:
        self._closed_because: str | None = "STARTING"
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def running(self) -> int:
        """Requests inside now."""
        return self._running

    @property
    def is_draining(self) -> bool:
        """Tells whether the worker takes no new work for good."""
        return self._closed_because == "DRAINING"

    def set_engine(self, is_up: bool) -> None:
        """Shuts while the engine is lost and lets requests in again when it is back."""
        if not self.is_draining:
            self._closed_because = None if is_up else "ENGINE_DOWN"

    @property
    def takes_work(self) -> bool:
        """Tells whether a request would be let in now."""
        return self._closed_because is None

    def open(self) -> None:
        """Lets requests in, unless the worker drains already."""
        if not self.is_draining:
            self._closed_because = None

    def drain(self) -> None:
        """Lets no more requests in."""
        self._closed_because = "DRAINING"

    @contextmanager
    def pass_through(self) -> Iterator[None]:
        """Holds one request inside. Raises UnavailableError (STARTING, DRAINING) when shut."""
        if self._closed_because is not None:
            raise UnavailableError("the worker takes no new work", reason=self._closed_because)
        self._running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def wait_idle(self, timeout_s: float) -> bool:
        """Returns whether the last request left within the time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
