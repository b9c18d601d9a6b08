"""What a decode worker's service asks of its two kinds: engines with blocks, engines with rooms."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Protocol

from baton.state.background import running
from baton.state.fleet import FleetView
from baton.worker.readers import Readers
from services.decode.job import DecodeUpdate, Job
from services.decode.peers import Peers
from services.decode.remote import RemotePrefiller
from services.decode.reservations import Reservations

CLOSE_IDLE_EVERY_S = 10.0


class Runner(Protocol):
    """Runs generations."""

    def run(self, job: Job) -> AsyncGenerator[DecodeUpdate, None]:
        """Yields PromptReady once, then the tokens. Closing it stops the work and frees its KV."""
        ...


class Upkeep(Protocol):
    """Keeps pairs with the fleet's prefill workers."""

    def connected(self) -> list[str]:
        """Returns the ids of the prefill workers whose pair is proven."""
        ...

    async def prepare(self, fleet: FleetView) -> None:
        """Makes the pairs that can be made now, before the worker takes work."""
        ...

    async def run(self, fleet: FleetView) -> None:
        """Makes pairs as workers join and forgets old ones, until cancelled."""
        ...


class BlockUpkeep:
    """Upkeep where KV is moved block by block, to this worker and from its cache to others."""

    def __init__(
        self,
        peers: Peers,
        remote: RemotePrefiller,
        reservations: Reservations,
        readers: Readers,
    ) -> None:
        self._readers = readers
        self.leases = reservations.leases
        self._peers = peers
        self._remote = remote
        self._reservations = reservations

    def connected(self) -> list[str]:
        """See Upkeep."""
        return self._peers.connected()

    async def prepare(self, fleet: FleetView) -> None:
        """Does nothing: a pair costs milliseconds, so it is made beside the work."""

    async def run(self, fleet: FleetView) -> None:
        """See Upkeep; takes reservations back too."""
        try:
            async with AsyncExitStack() as stack:
                for work in (
                    self._reservations.run(),
                    self._readers.follow(fleet),
                    self._close_idle_links(),
                ):
                    await stack.enter_async_context(running(work))
                await self._peers.follow(fleet)
        finally:
            await self._remote.close()

    async def _close_idle_links(self) -> None:
        while True:
            await asyncio.sleep(CLOSE_IDLE_EVERY_S)
            await self._remote.close_idle()
