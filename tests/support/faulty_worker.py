"""A prefill worker in a process of its own that fails as the request's name tells it to.

Real gRPC, registration and transfers; the engine is the fake one, so that each block's content
proves whose it is.
"""

import asyncio
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection

from baton.blocks import blocks_digest
from baton.config import load_config
from baton.engine.base import Prefilled
from baton.errors import OverloadedError
from baton.kv.layered import LayeredWire
from baton.kv.nixl import NixlWire
from baton.kv.samehost import SameHostWire
from baton.kv.transfer import KvDestination, KvReceipt, KvTransport, OutgoingTransfer
from baton.kv.wire import Wire
from baton.kv.wired import WiredTransport
from baton.requests import EngineRequest
from baton.state.connect import connect
from baton.state.records import WorkerRole, new_incarnation
from baton.telemetry.providers import start_telemetry
from baton.worker.finish import finish
from baton.worker.host import WorkerHost, WorkerIdentity
from services.prefill.main import build_service
from tests.support.fake_engine import BLOCK_BYTES, FakeEngine

BLOCKS = 1024
PAUSE_S = 0.002
SHARED, NIXL = "shared-memory", "nixl-ucx"

FAULTS = (
    "none",
    "killed-before",
    "killed-during",
    "killed-after",
    "declined",
    "partial",
    "elsewhere",
    "wrong-tokens",
    "never-finishes",
)
"""What a request's name may ask for, behind its last colon."""


def make_transport(agent: str, path: str) -> WiredTransport:
    """Returns a transport whose bytes take one path only."""
    wire: Wire = SameHostWire(agent) if path == SHARED else NixlWire(agent)
    return WiredTransport(agent, LayeredWire(wire), timeout_s=5.0)


def run(connection: Connection, name: str, redis_url: str, address: str, path: str) -> None:
    """Runs a worker until SIGTERM; tells its address and incarnation once it is ready."""
    asyncio.run(_run(connection, name, redis_url, address, path))


async def _run(connection: Connection, name: str, redis_url: str, address: str, path: str) -> None:
    incarnation = new_incarnation()
    identity = WorkerIdentity(name, incarnation, WorkerRole.PREFILL, "127.0.0.1", 0, address)
    host = WorkerHost(
        identity,
        load_config(environ={"REDIS_URL": redis_url}),
        FaultyEngine(),
        make_transport(incarnation, path),
        start_telemetry("test", name, ""),
        build_service,
    )
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    redis = connect(redis_url)
    running = asyncio.create_task(host.run(redis, stop))
    await host.is_ready.wait()
    connection.send((host.listening, incarnation))
    try:
        await running
    finally:
        await redis.aclose()


class FaultyEngine(FakeEngine):
    """Fails in `prefill`, and pauses there so that others can fail meanwhile."""

    def __init__(self) -> None:
        super().__init__(BLOCKS)

    async def start(self, transport: KvTransport) -> None:
        await super().start(transport)
        self._transport = _Paced(transport)

    async def prefill(self, request: EngineRequest, destination: KvDestination) -> Prefilled:
        fault = request.request_id.rpartition(":")[2]
        if fault == "killed-before":
            _die()
        if fault == "declined":
            raise OverloadedError("as asked", reason="PREFILL_QUEUE_FULL")
        assert isinstance(self._transport, _Paced)
        self._transport.fault = fault
        return await super().prefill(request, destination)


class _Paced:
    """The transport, with transfers that do what the fault says. Prefills come one by one."""

    def __init__(self, transport: KvTransport) -> None:
        self._transport = transport
        self.fault = "none"

    def __getattr__(self, name: str) -> object:
        return getattr(self._transport, name)

    def open(self, destination: KvDestination) -> OutgoingTransfer:
        opened = destination
        # Probes are opened by the peers' side of the worker, not here.
        if self.fault == "elsewhere" and destination.block_ids:
            first, *rest = destination.block_ids
            opened = replace(destination, block_ids=(*rest, first))
        return _PacedTransfer(self._transport.open(opened), destination, self.fault)


class _PacedTransfer:
    def __init__(self, outgoing: OutgoingTransfer, destination: KvDestination, fault: str) -> None:
        self._outgoing = outgoing
        self._destination = destination
        self._fault = fault
        self._queued: list[tuple[Sequence[int], int]] = []

    def push(self, source_blocks: Sequence[int], offset: int) -> None:
        half = source_blocks[: len(source_blocks) // 2]
        if self._fault == "partial" and offset:
            source_blocks = half
        if source_blocks:
            self._outgoing.push(source_blocks, offset)
        if self._fault == "killed-during" and offset:
            _die()

    async def finish(self, tokens: int) -> KvReceipt:
        await asyncio.sleep(PAUSE_S)
        if self._fault == "never-finishes":
            await asyncio.Event().wait()
        said = tokens - 1 if self._fault == "wrong-tokens" else tokens
        receipt = await self._outgoing.finish(said)
        if self._fault == "killed-after":
            _die()
        blocks = self._destination.block_ids
        return replace(
            receipt,
            blocks=len(blocks),
            bytes=len(blocks) * BLOCK_BYTES,
            blocks_digest=blocks_digest(blocks),
            tokens=tokens,
        )

    async def abort(self) -> None:
        await finish(self._outgoing.abort())


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
