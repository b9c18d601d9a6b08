"""A prompt's KV moves from one pool into another, chunk by chunk, and is verified on arrival.

python examples/kv_cache_transfer.py
"""

import asyncio
import ctypes
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from baton.errors import KvMismatchError
from baton.kv.inprocess import InProcessFabric, InProcessTransport
from baton.kv.transfer import KvReceipt, PoolMemory

BLOCK_TOKENS, BLOCK_BYTES, BLOCKS = 16, 2 << 20, 96
LAYOUT = "bfloat16/32x8x128/16"
CHUNK_BLOCKS = 8


class Worker:
    """A pool of KV blocks and the transport that moves them."""

    def __init__(self, name: str, fabric: InProcessFabric) -> None:
        self.memory = ctypes.create_string_buffer(BLOCK_BYTES * BLOCKS)
        self.transport = InProcessTransport(name, fabric)

    async def start(self) -> None:
        """Registers the pool."""
        base = ctypes.addressof(self.memory)
        await self.transport.start(PoolMemory(base, BLOCK_BYTES, BLOCKS, LAYOUT))

    def fill(self, block: int, value: int) -> None:
        """Stands for computing a block's keys and values."""
        base = ctypes.addressof(self.memory)
        ctypes.memset(base + block * BLOCK_BYTES, value, BLOCK_BYTES)

    def first_byte(self, block: int) -> int:
        """Returns what a block holds."""
        return self.memory[block * BLOCK_BYTES][0]


async def hand_over(prefill: Worker, decode: Worker, tokens: int, cached: int) -> KvReceipt:
    """Computes a prompt chunk by chunk on one worker while its KV moves to the other."""
    blocks = range((tokens - cached) // BLOCK_TOKENS)
    targets = [BLOCKS - 1 - at for at in blocks]  # any blocks that are free there
    destination = decode.transport.expect(f"t-{tokens}-{cached}", cached, targets)
    outgoing = prefill.transport.open(destination)
    for start in range(0, len(blocks), CHUNK_BLOCKS):
        chunk = blocks[start : start + CHUNK_BLOCKS]
        for block in chunk:
            prefill.fill(block, 1 + block % 250)
        outgoing.push(list(chunk), start)  # moves while the next chunk computes
        await asyncio.sleep(0)
    receipt = await outgoing.finish(tokens)
    await decode.transport.verify(receipt, tokens, 10.0)
    assert all(decode.first_byte(targets[at]) == 1 + at % 250 for at in blocks)
    return receipt


async def run() -> None:
    """Moves three prompts, then shows that a wrong receipt is refused."""
    fabric = InProcessFabric()
    prefill, decode = Worker("prefill-0", fabric), Worker("decode-0", fabric)
    await prefill.start()
    await decode.start()
    await prefill.transport.connect("decode-0", decode.transport.metadata(), LAYOUT)
    print("prompt  cached  blocks  moved      seconds  GB/s")
    for tokens, cached in ((1024, 0), (1024, 768), (1536, 512)):
        began_s = time.perf_counter()
        receipt = await hand_over(prefill, decode, tokens, cached)
        seconds = time.perf_counter() - began_s
        print(
            f"{tokens:6d}  {cached:6d}  {receipt.blocks:6d}  {receipt.bytes / 2**20:5.0f} MiB  "
            f"{seconds:7.3f}  {receipt.bytes / seconds / 1e9:.2f}"
        )
    destination = decode.transport.expect("wrong", 0, [0, 1])
    outgoing = prefill.transport.open(destination)
    outgoing.push([4, 5], 0)
    receipt = await outgoing.finish(2 * BLOCK_TOKENS)
    try:
        await decode.transport.verify(receipt, 3 * BLOCK_TOKENS, 10.0)
    except KvMismatchError as error:
        print(f"refused: {error.message}")
    await prefill.transport.stop()
    await decode.transport.stop()


def main() -> None:
    """Runs it."""
    asyncio.run(run())


if __name__ == "__main__":
    main()
