"""GB/s between two processes, beside what the link can do, measured in turns in the same run."""

import asyncio
import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import torch

from bench.transfer.pools import BenchPool, ChildPool

LAYOUT = "bench"
TOKENS = 1
MAX_IN_FLIGHT = 4
_SETTLE_S = 0.02
_ids = count()


@dataclass(frozen=True, slots=True)
class Speed:
    """One size's figures, in GB/s, with `in_flight` transfers of that size under way at a time.

    `share_alone` is for one transfer at a time, which also pays for waking both sides, and
    `share_scattered` for blocks of which no two are adjacent. `cma_gb_per_s` is None off the CPU.
    """

    size_bytes: int
    path: str
    in_flight: int
    gb_per_s: float
    limit_gb_per_s: float
    share: float
    share_alone: float
    share_scattered: float
    cma_gb_per_s: float | None
    cpu_s_per_gb: float


@dataclass(frozen=True, slots=True)
class Link:
    """A writer here, a reader in another process, and a second pool here to measure the limit."""

    writer: BenchPool
    reader: ChildPool
    scratch: torch.Tensor
    block_bytes: int
    path: str
    reader_place: tuple[str, bytes, int, int]
    writer_place: tuple[str, bytes, int, int]

    async def move(self, *moves: tuple[Sequence[int], Sequence[int]]) -> float:
        """Moves blocks in one transfer each and returns the seconds until all have receipts."""
        destinations = [
            await self.reader.ask("expect", f"bench-{next(_ids)}", tuple(targets))
            for _, targets in moves
        ]
        # Both sides come to rest: what is measured is a transfer, not the end of the last one.
        await asyncio.sleep(_SETTLE_S)
        began_s = time.perf_counter()
        transfers = []
        for destination, (sources, _) in zip(destinations, moves, strict=True):
            outgoing = self.writer.transport.open(destination)
            outgoing.push(sources, 0)
            transfers.append(outgoing.finish(TOKENS))
        receipts = await asyncio.gather(*transfers)
        seconds = time.perf_counter() - began_s
        for receipt in receipts:
            await self.reader.ask("verify", receipt)
        return seconds


async def connect(
    device: str, reader_device: str, block_bytes: int, blocks: int, is_private: bool
) -> Link:
    """Returns a link between two pools of `blocks` blocks."""
    writer = BenchPool("writer", device, block_bytes, blocks, is_private)
    reader = ChildPool("reader", reader_device, block_bytes, blocks, is_private)
    await writer.start(LAYOUT)
    await reader.ask("start", LAYOUT)
    theirs, ours = await reader.ask("place"), await writer.place()
    path = await writer.connect(theirs[0], theirs[1], LAYOUT)
    await reader.ask("connect", ours[0], ours[1], LAYOUT)
    scratch = BenchPool("scratch", reader_device, block_bytes, blocks, is_private).bytes
    return Link(writer, reader, scratch, block_bytes, path, theirs, ours)


async def disconnect(link: Link) -> None:
    """Ends both sides."""
    await link.writer.stop()
    await link.reader.stop()


async def measure(link: Link, size_bytes: int, rounds: int) -> Speed:
    """Measures one size: in each round the limit and every kind of transfer, in turns."""
    blocks = size_bytes // link.block_bytes
    in_flight = min(MAX_IN_FLIGHT, link.scratch.numel() // size_bytes)
    ranges = [range(start * blocks, (start + 1) * blocks) for start in range(in_flight)]
    flight = [(blocks, blocks) for blocks in ranges]
    # Neighbours change places, so that no two adjacent blocks can be joined.
    scattered = [([block ^ 1 for block in reversed(blocks)], blocks) for blocks in ranges]
    copy = _copier(link, size_bytes, in_flight)
    await link.move(*flight)
    copy()
    limits, moves, alone, scatters, reads, cpu = [], [], [], [], [], []
    for _ in range(rounds):
        limits.append(copy() / in_flight)
        idle_s = await _idle_cpu(link)
        before_s = time.process_time() + await link.reader.ask("cpu_s")
        moves.append(await link.move(*flight) / in_flight)
        cpu.append(time.process_time() + await link.reader.ask("cpu_s") - before_s - idle_s)
        alone.append(await link.move(flight[0]))
        scatters.append(await link.move(*scattered) / in_flight)
        if _is_cpu(link):
            reads.append(await link.reader.ask("read_other", *link.writer_place[2:], size_bytes))
    gb = size_bytes / 1e9
    limit_s = statistics.median(limits)
    return Speed(
        size_bytes=size_bytes,
        path=link.path,
        in_flight=in_flight,
        gb_per_s=gb / statistics.median(moves),
        limit_gb_per_s=gb / limit_s,
        share=limit_s / statistics.median(moves),
        share_alone=limit_s / statistics.median(alone),
        share_scattered=limit_s / statistics.median(scatters),
        cma_gb_per_s=gb / statistics.median(reads) if reads else None,
        cpu_s_per_gb=max(0.0, statistics.median(cpu)) / (gb * in_flight),
    )


async def _idle_cpu(link: Link) -> float:
    """Returns the CPU seconds that asking and settling take without a transfer."""
    before_s: float = time.process_time() + await link.reader.ask("cpu_s")
    await asyncio.sleep(_SETTLE_S)
    after_s: float = time.process_time() + await link.reader.ask("cpu_s")
    return after_s - before_s


def _is_cpu(link: Link) -> bool:
    return link.scratch.device.type == "cpu" and link.writer.bytes.device.type == "cpu"


def _copier(link: Link, size: int, times: int) -> Callable[[], float]:
    """Returns a copy of the same bytes inside this process, timed: what the link can do."""
    if _is_cpu(link):
        source, target = link.writer.bytes.data_ptr(), link.scratch.data_ptr()

        def copy() -> float:
            began_s = time.perf_counter()
            for start in range(0, times * size, size):
                ctypes.memmove(target + start, source + start, size)
            return time.perf_counter() - began_s

        return copy

    def copy_on_device() -> float:
        _synchronize(link)
        began_s = time.perf_counter()
        for start in range(0, times * size, size):
            link.scratch[start : start + size].copy_(link.writer.bytes[start : start + size])
        _synchronize(link)
        return time.perf_counter() - began_s

    return copy_on_device


def _synchronize(link: Link) -> None:
    torch.cuda.synchronize(link.scratch.device)
    torch.cuda.synchronize(link.writer.bytes.device)
