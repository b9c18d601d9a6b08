"""The decode workers that this worker writes KV to: introduced, in use, forgotten.

A decode worker is forgotten when the last link that used it is gone and no transfer to it is left.
It introduces itself again when it comes back, so forgetting one too many costs a round trip and
forgetting one too few leaks its memory mapping at every restart in the fleet.
"""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from baton.errors import PreconditionError, TransferError
from baton.kv.transfer import KvDestination, KvReceipt, KvTransport
from baton.state.fleet import FleetView
from baton.state.records import WorkerRole
from baton.worker.finish import finish
from baton.worker.probe import PROBE_TOKENS

logger = logging.getLogger(__name__)

SWEEP_EVERY_S = 5.0
FORGET_AFTER_S = 30.0
"""Who was introduced but is neither linked nor in the fleet is forgotten after this long."""


@dataclass(slots=True, eq=False)
class _Peer:
    links: int = 0
    transfers: int = 0
    used_at_s: float = field(default_factory=time.monotonic)

    @property
    def is_used(self) -> bool:
        return self.links > 0 or self.transfers > 0


class LinkedReaders:
    """The decode workers that one link wrote to; normally one."""

    def __init__(self) -> None:
        self.agents: set[str] = set()


class Readers:
    """All decode workers that one worker writes to."""

    def __init__(self, transport: KvTransport) -> None:
        self._transport = transport
        self._peers: dict[str, _Peer] = {}

    def known(self) -> list[str]:
        """Returns the agents of all decode workers that are not forgotten."""
        return sorted(self._peers)

    async def introduce(
        self, agent: str, metadata: bytes, layout: str, probe: KvDestination
    ) -> KvReceipt:
        """Makes a decode worker reachable and proves it by writing one block.

        Raises PreconditionError when KV may not move between the two, TransferError when it
        does not arrive.
        """
        with self._transferring(agent):
            await self._transport.connect(agent, metadata, layout)
            receipt = await self._write_probe(probe)
        logger.info("decode worker introduced agent=%s", agent)
        return receipt

    @contextmanager
    def writing(self, link: LinkedReaders, agent: str) -> Iterator[None]:
        """Keeps a decode worker while a prefill writes to it.

        Raises PreconditionError (PEER_UNKNOWN) when it has to introduce itself first.
        """
        if not self._transport.is_connected(agent):
            raise PreconditionError(f"{agent} was not introduced", reason="PEER_UNKNOWN")
        with self._transferring(agent) as peer:
            if agent not in link.agents:
                link.agents.add(agent)
                peer.links += 1
            yield

    async def close_link(self, link: LinkedReaders) -> None:
        """Forgets who was reached over this link only; its transfers have ended."""
        for agent in link.agents:
            peer = self._peers[agent]
            peer.links -= 1
            if not peer.is_used:
                await self._forget(agent)

    async def follow(self, fleet: FleetView) -> None:
        """Forgets those that left the fleet without ever having opened a link."""
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            if not fleet.is_fresh:
                continue
            live = {view.record.incarnation for view in fleet.workers(WorkerRole.DECODE)}
            oldest_s = time.monotonic() - FORGET_AFTER_S
            for agent, peer in list(self._peers.items()):
                if agent not in live and not peer.is_used and peer.used_at_s < oldest_s:
                    await self._forget(agent)

    @contextmanager
    def _transferring(self, agent: str) -> Iterator[_Peer]:
        peer = self._peers.setdefault(agent, _Peer())
        peer.transfers += 1
        try:
            yield peer
        finally:
            peer.transfers -= 1
            peer.used_at_s = time.monotonic()

    async def _write_probe(self, probe: KvDestination) -> KvReceipt:
        outgoing = self._transport.open(probe)
        has_ended = False
        try:
            # Any block will do: what it holds is never used, and reading it disturbs nobody.
            outgoing.push((0,), 0)
            receipt = await outgoing.finish(PROBE_TOKENS)
            has_ended = True
            return receipt
        finally:
            if not has_ended:
                await finish(outgoing.abort())

    async def _forget(self, agent: str) -> None:
        self._peers.pop(agent, None)
        try:
            await self._transport.disconnect(agent)
        except TransferError as error:
            logger.warning("decode worker not disconnected agent=%s: %s", agent, error.message)
        logger.info("decode worker forgotten agent=%s", agent)
