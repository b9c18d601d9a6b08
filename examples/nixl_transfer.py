"""KV blocks cross between two processes by NIXL, one-sided: the reader's CPU does nothing.

python examples/nixl_transfer.py
"""

import asyncio
import multiprocessing
import resource
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from baton.errors import StartupError
from baton.kv.nixl import NixlTransport
from baton.kv.transfer import PoolMemory

BLOCK_TOKENS, BLOCK_BYTES, BLOCKS = 16, 1 << 20, 256
LAYOUT = "float32/example"
SIZES = (1, 16, 64, 192)


async def start(name: str, pool: np.ndarray) -> NixlTransport:
    """Returns a transport that has registered its pool."""
    transport = NixlTransport(name)
    await transport.start(PoolMemory(pool.ctypes.data, BLOCK_BYTES, BLOCKS, LAYOUT))
    return transport


async def read(pipe: Connection) -> None:
    """The decode side: offers blocks, waits for the KV, checks it."""
    pool = np.full((BLOCKS, BLOCK_BYTES), 255, dtype=np.uint8)  # touched, as a pool in use is
    transport = await start("decode-0", pool)
    pipe.send(transport.metadata())
    for blocks in SIZES:
        destination = transport.expect(f"t{blocks}", 0, range(blocks))
        before = resource.getrusage(resource.RUSAGE_SELF)
        pipe.send(destination)
        receipt = await asyncio.to_thread(pipe.recv)
        await transport.verify(receipt, blocks * BLOCK_TOKENS, 20.0)
        after = resource.getrusage(resource.RUSAGE_SELF)
        is_right = bool((pool[:blocks, 0] == np.arange(blocks)).all())
        pipe.send((is_right, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
    await transport.stop()


def reader(pipe: Connection) -> None:
    """Runs the decode side in a process of its own."""
    asyncio.run(read(pipe))


async def write(pipe: Connection) -> None:
    """The prefill side: writes its blocks into the reader's pool and tells how fast that was."""
    pool = np.full((BLOCKS, BLOCK_BYTES), 7, dtype=np.uint8)
    pool[:, 0] = np.arange(BLOCKS)
    transport = await start("prefill-0", pool)
    await transport.connect("decode-0", await asyncio.to_thread(pipe.recv), LAYOUT)
    print("blocks     bytes  seconds   GB/s  content  reader's CPU")
    for blocks in SIZES:
        destination = await asyncio.to_thread(pipe.recv)
        began_s = time.perf_counter()
        outgoing = transport.open(destination)
        outgoing.push(list(range(blocks)), 0)
        receipt = await outgoing.finish(blocks * BLOCK_TOKENS)
        seconds = time.perf_counter() - began_s
        pipe.send(receipt)
        is_right, cpu_s = await asyncio.to_thread(pipe.recv)
        print(
            f"{blocks:6d} {receipt.bytes / 2**20:5.0f} MiB  {seconds:7.4f} "
            f"{receipt.bytes / seconds / 1e9:6.2f}  {'right' if is_right else 'WRONG':<7}  "
            f"{1000 * cpu_s:6.1f} ms"
        )
    await transport.stop()


def main() -> None:
    """Starts the reader, writes to it, ends both."""
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe()
    process = context.Process(target=reader, args=(its,))
    process.start()
    try:
        asyncio.run(write(mine))
    except StartupError as error:
        sys.exit(f"NIXL is not here: {error}")
    finally:
        process.join(10)


if __name__ == "__main__":
    main()
