"""Pools to move bytes between, in this process or a child: in host memory or on a GPU."""

import asyncio
import ctypes
import multiprocessing
import os
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch

from baton.kv.layered import LayeredWire
from baton.kv.nixl import NixlWire
from baton.kv.samehost import SameHostWire
from baton.kv.segment import Segment
from baton.kv.transfer import KvDestination, KvReceipt, PoolMemory
from baton.kv.wired import WiredTransport

CHILD_TIMEOUT_S = 120.0
TIMEOUT_S = 60.0


class BenchPool:
    """A pool of `block_count` blocks and a transport on it. `device` is cpu or a CUDA device.

    A pool on the CPU is one that peers can map unless `is_private`; then NIXL moves it.
    """

    def __init__(
        self, agent: str, device: str, block_bytes: int, block_count: int, is_private: bool
    ) -> None:
        size = block_bytes * block_count
        self._segment = None
        if device == "cpu" and not is_private:
            self._segment = Segment(size)
            self.bytes = torch.frombuffer(self._segment.buffer, dtype=torch.uint8)
        else:
            self.bytes = torch.empty(size, dtype=torch.uint8, device=device)
        self.bytes.zero_()
        self._device = device
        self._shape = block_bytes, block_count
        self.transport = WiredTransport(
            agent, LayeredWire(SameHostWire(agent), NixlWire(agent)), TIMEOUT_S
        )

    async def start(self, layout: str) -> None:
        """Registers the pool."""
        memory = PoolMemory(
            self.bytes.data_ptr(), *self._shape, layout, self._device, self._segment
        )
        await self.transport.start(memory)

    async def stop(self) -> None:
        """Ends the transport."""
        await self.transport.stop()

    async def place(self) -> tuple[str, bytes, int, int]:
        """Returns agent, metadata, process id and address."""
        transport = self.transport
        return transport.agent, transport.metadata(), os.getpid(), self.bytes.data_ptr()

    async def connect(self, agent: str, metadata: bytes, layout: str) -> str:
        """Introduces a peer and returns how bytes get to it."""
        await self.transport.connect(agent, metadata, layout)
        return self.transport.paths()[agent]

    async def expect(self, transfer_id: str, blocks: Sequence[int]) -> KvDestination:
        """Opens the reader's side."""
        return self.transport.expect(transfer_id, 0, blocks)

    async def verify(self, receipt: KvReceipt) -> float:
        """Proves a receipt and returns when that was, on this host's monotonic clock."""
        await self.transport.verify(receipt, receipt.tokens, TIMEOUT_S)
        return time.monotonic()

    async def checksum(self) -> int:
        """Returns the sum of the pool's bytes."""
        return int(self.bytes.sum(dtype=torch.int64).item())

    async def cpu_s(self) -> float:
        """Returns the CPU seconds of this process."""
        return time.process_time()

    async def read_other(self, process_id: int, address: int, size: int) -> float:
        """Reads another process's memory with one system call; returns the seconds."""
        return read_process(process_id, address, self.bytes.data_ptr(), size)


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def read_process(process_id: int, source: int, target: int, size: int) -> float:
    """Returns the seconds of process_vm_readv; a call moves at most 2 GiB. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.process_vm_readv.restype = ctypes.c_ssize_t
    done = 0
    began_s = time.perf_counter()
    while done < size:
        local, remote = _IoVec(target + done, size - done), _IoVec(source + done, size - done)
        moved = libc.process_vm_readv(
            process_id, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0
        )
        if moved <= 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        done += moved
    return time.perf_counter() - began_s


class ChildPool:
    """A `BenchPool` in a process of its own."""

    def __init__(self, *arguments: Any, core: int | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, arguments, core), daemon=True)
        self._process.start()
        theirs.close()
        self._receive()

    async def ask(self, name: str, *arguments: Any) -> Any:
        """Calls a method of the pool there."""
        self._connection.send((name, arguments))
        return await asyncio.to_thread(self._receive)

    async def stop(self) -> None:
        """Ends the process."""
        await self.ask("stop")
        self._process.join(CHILD_TIMEOUT_S)

    def _receive(self) -> Any:
        if not self._connection.poll(CHILD_TIMEOUT_S):
            raise TimeoutError("the reader's process does not answer")
        answer = self._connection.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


def _serve(connection: Connection, arguments: tuple[Any, ...], core: int | None) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})

    async def loop() -> None:
        pool = BenchPool(*arguments)
        connection.send(None)
        while True:
            name, given = await asyncio.to_thread(connection.recv)
            try:
                answer = await getattr(pool, name)(*given)
            except OSError as error:
                answer = error
            connection.send(answer)
            if name == "stop":
                return

    torch.set_num_threads(1)
    asyncio.run(loop())
