"""Both ways between real processes: bytes arrive, peers die, and the survivors go on."""

import asyncio
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest

from baton.blocks import blocks_digest
from baton.errors import PreconditionError, StartupError, TransferError
from baton.kv.layered import LayeredWire
from baton.kv.nixl import NixlTransport, NixlWire
from baton.kv.notices import PoolMetadata, decode_metadata, encode_metadata
from baton.kv.samehost import SameHostWire
from baton.kv.segment import Segment
from baton.kv.transfer import KvDestination, KvReceipt, PoolMemory
from baton.kv.wired import WiredTransport

BLOCK_BYTES = 64 << 10
BLOCKS = 256
TOKENS = 1000
SHARED, NIXL = "shared-memory", "nixl-ucx"
LAYOUT = "float32/4x2x32/64"
CHILD_TIMEOUT_S = 60.0


class Worker:
    """A transport and its pool, in whichever process. `path` is the way that its bytes take."""

    def __init__(self, agent: str, path: str) -> None:
        self._segment = Segment(BLOCKS * BLOCK_BYTES) if path == SHARED else None
        memory = np.zeros(BLOCKS * BLOCK_BYTES, dtype=np.uint8)
        if self._segment is not None:
            memory = np.frombuffer(self._segment.buffer, dtype=np.uint8)
        self.pool = memory.reshape(BLOCKS, BLOCK_BYTES)
        wire = LayeredWire(SameHostWire(agent), NixlWire(agent))
        self.transport = WiredTransport(agent, wire, timeout_s=10.0)

    async def start(self) -> None:
        address = self.pool.ctypes.data
        memory = PoolMemory(address, BLOCK_BYTES, BLOCKS, LAYOUT, segment=self._segment)
        await self.transport.start(memory)

    async def stop(self) -> None:
        await self.transport.stop()

    async def metadata(self) -> bytes:
        return self.transport.metadata()

    async def connect(self, agent: str, metadata: bytes) -> None:
        await self.transport.connect(agent, metadata, LAYOUT)

    async def expect(self, transfer_id: str, blocks: Sequence[int]) -> KvDestination:
        return self.transport.expect(transfer_id, 0, blocks)

    async def verify(self, receipt: KvReceipt) -> None:
        await self.transport.verify(receipt, TOKENS, 10.0)

    async def content(self, blocks: Sequence[int]) -> bytes:
        return self.pool[list(blocks)].tobytes()

    async def begin(self, destination: KvDestination, blocks: Sequence[int]) -> None:
        """Writes some blocks and leaves the transfer open."""
        outgoing = self.transport.open(destination)
        outgoing.push(blocks, 0)


def serve(connection: Connection, agent: str, path: str) -> None:
    """Runs in the child: does to its worker what the parent asks for."""

    async def loop() -> None:
        worker = Worker(agent, path)
        await worker.start()
        connection.send(None)
        while True:
            name, arguments = await asyncio.to_thread(connection.recv)
            connection.send(await getattr(worker, name)(*arguments))
            if name == "stop":
                return

    asyncio.run(loop())


class Child:
    """A worker in a process of its own."""

    def __init__(self, agent: str, path: str) -> None:
        self.agent = agent
        self.path = path
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, agent, path), daemon=True)
        self.process.start()
        theirs.close()
        self._receive()

    async def ask(self, name: str, *arguments: object) -> Any:
        self._connection.send((name, arguments))
        return await asyncio.to_thread(self._receive)

    def kill(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)

    def end(self) -> None:
        if self.process.is_alive():
            self._connection.send(("stop", ()))
            self._receive()
        self.process.join(CHILD_TIMEOUT_S)
        self._connection.close()

    def _receive(self) -> Any:
        assert self._connection.poll(CHILD_TIMEOUT_S), f"{self.agent} does not answer"
        return self._connection.recv()


@pytest.fixture(scope="module", params=[SHARED, NIXL])
def path(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def reader(path: str) -> Iterator[Child]:
    child = Child("reader-1", path)
    yield child
    child.end()
    assert child.process.exitcode == 0


@pytest.fixture
async def writer(request: pytest.FixtureRequest, path: str) -> AsyncIterator[Worker]:
    worker = Worker(f"writer-{request.node.name}", path)
    await worker.start()
    yield worker
    await worker.stop()


async def introduce(writer: Worker, reader: Child) -> None:
    await writer.connect(reader.agent, await reader.ask("metadata"))
    await reader.ask("connect", writer.transport.agent, await writer.metadata())
    assert writer.transport.paths()[reader.agent] == reader.path


def scramble(worker: Worker, seed: int) -> None:
    worker.pool[:] = np.random.default_rng(seed).integers(0, 256, worker.pool.shape, np.uint8)


async def send_all(writer: Worker, reader: Child, transfer_id: str, chunk: int = BLOCKS) -> None:
    """Moves the whole pool in chunks, reversed, and lets the reader prove it."""
    targets = tuple(reversed(range(BLOCKS)))
    outgoing = writer.transport.open(await reader.ask("expect", transfer_id, targets))
    for start in range(0, BLOCKS, chunk):
        outgoing.push(range(start, start + chunk), start)
    receipt = await outgoing.finish(TOKENS)
    assert receipt.bytes == BLOCKS * BLOCK_BYTES
    assert receipt.transfer_s > 0
    await reader.ask("verify", receipt)
    assert await reader.ask("content", targets) == writer.pool.tobytes()


async def test_overlapping_chunks_arrive_intact(writer: Worker, reader: Child) -> None:
    await introduce(writer, reader)

    for seed, chunk in ((1, BLOCKS), (2, 16), (3, 1)):
        scramble(writer, seed)
        await send_all(writer, reader, f"chunks-of-{chunk}", chunk)


async def test_first_transfer_may_be_of_no_blocks(writer: Worker, reader: Child) -> None:
    await introduce(writer, reader)

    outgoing = writer.transport.open(await reader.ask("expect", "nothing", ()))
    receipt = await outgoing.finish(TOKENS)
    await reader.ask("verify", receipt)

    assert (receipt.blocks, receipt.bytes) == (0, 0)


async def test_peer_can_be_forgotten_and_introduced_again(writer: Worker, reader: Child) -> None:
    await introduce(writer, reader)
    await introduce(writer, reader)
    await send_all(writer, reader, "before")

    await writer.transport.disconnect(reader.agent)
    assert not writer.transport.is_connected(reader.agent)
    await introduce(writer, reader)

    scramble(writer, 4)
    await send_all(writer, reader, "after")


async def test_nothing_is_written_after_an_abort(writer: Worker, reader: Child) -> None:
    await introduce(writer, reader)
    await send_all(writer, reader, "barrier-1")
    scramble(writer, 5)
    outgoing = writer.transport.open(await reader.ask("expect", "aborted", range(1, BLOCKS)))
    for block in range(1, BLOCKS):
        outgoing.push([block], block - 1)

    await outgoing.abort()
    at_abort = await reader.ask("content", range(BLOCKS))
    scramble(writer, 6)
    outgoing.push(range(1, BLOCKS), 0)
    # A later transfer on the same connection would push anything left behind ahead of itself.
    barrier = writer.transport.open(await reader.ask("expect", "barrier-2", [0]))
    barrier.push([0], 0)
    await reader.ask("verify", await barrier.finish(TOKENS))

    after = await reader.ask("content", range(BLOCKS))
    assert after[BLOCK_BYTES:] == at_abort[BLOCK_BYTES:]
    assert after[:BLOCK_BYTES] == writer.pool[0].tobytes()


async def test_killed_reader_fails_its_transfer_and_no_other(
    writer: Worker, reader: Child, path: str
) -> None:
    victim = Child("victim-1", path)
    await introduce(writer, victim)
    await introduce(writer, reader)
    await send_all(writer, victim, "before")

    outgoing = writer.transport.open(await victim.ask("expect", "doomed", range(BLOCKS)))
    outgoing.push(range(BLOCKS // 2), 0)
    victim.kill()
    victim.process.join(CHILD_TIMEOUT_S)
    outgoing.push(range(BLOCKS // 2, BLOCKS), BLOCKS // 2)

    with pytest.raises(TransferError) as caught:
        await outgoing.finish(TOKENS)
    assert caught.value.reason in {"PEER_LOST", "TRANSFER_FAILED"}
    await outgoing.abort()
    assert not writer.transport.is_connected(victim.agent)
    await send_all(writer, reader, "with-another-peer")

    restarted = Child("victim-2", path)
    await introduce(writer, restarted)
    scramble(writer, 7)
    await send_all(writer, restarted, "after-restart")
    restarted.end()
    assert restarted.process.exitcode == 0


async def test_killed_writer_leaves_the_reader_with_a_timeout(writer: Worker, path: str) -> None:
    here = writer
    child = Child("doomed-writer", path)
    await child.ask("connect", here.transport.agent, here.transport.metadata())
    await here.connect(child.agent, await child.ask("metadata"))
    destination = await here.expect("unfinished", range(BLOCKS))
    await child.ask("begin", destination, range(BLOCKS // 2))
    child.kill()
    child.process.join(CHILD_TIMEOUT_S)
    digest = blocks_digest(destination.block_ids)
    receipt = KvReceipt("unfinished", BLOCKS, BLOCKS * BLOCK_BYTES, 0.1, digest, TOKENS)

    with pytest.raises(TransferError) as caught:
        await here.transport.verify(receipt, TOKENS, timeout_s=0.3)

    assert caught.value.reason == "TRANSFER_TIMEOUT"
    assert not here.transport.incoming.is_expecting


@pytest.mark.parametrize("bytes_of_nobody", [b"", b"not from NIXL", bytes(4) + b"\4\0\0\0NIXL"])
async def test_foreign_connection_bytes_are_refused(writer: Worker, bytes_of_nobody: bytes) -> None:
    honest = decode_metadata(writer.transport.metadata())
    fake = PoolMetadata("stranger", honest.memory, bytes_of_nobody)

    with pytest.raises(PreconditionError) as caught:
        await writer.connect("stranger", encode_metadata(fake))

    assert caught.value.reason == "MALFORMED_METADATA"


async def test_unknown_device_stops_the_start() -> None:
    transport = NixlTransport("misconfigured")

    with pytest.raises(StartupError, match="tpu"):
        await transport.start(PoolMemory(4096, 64, 1, LAYOUT, device="tpu:0"))
