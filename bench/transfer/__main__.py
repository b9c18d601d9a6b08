"""KV transfers between two processes: their speed, their cost, and what they add to a prompt.

    python -m bench.transfer [--device cpu|cuda] [--record]

On a machine with two GPUs the pools lie on one each, with one GPU both lie on it. It prints two
tables and, last, one JSON line; --record keeps the result.
"""

import argparse
import asyncio
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from bench import report
from bench.transfer.first_token import SHAPES, Added, Bench, dtype_on, save_model
from bench.transfer.speed import Speed, connect, disconnect, measure

MIB = 1 << 20
HEADLINE_FROM_BYTES = 64 * MIB


def main() -> None:
    """Reads the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--sizes-mib", default="1,4,16,64,256,1024", help="Transfer sizes. MiB.")
    parser.add_argument("--block-kib", type=int, default=256, help="Bytes of a block. KiB.")
    parser.add_argument("--rounds", type=int, default=7, help="Measurements of each size.")
    parser.add_argument("--tokens", default="512,2048,4096,8192,16384", help="Prompt lengths.")
    parser.add_argument("--prompt-rounds", type=int, default=3)
    parser.add_argument("--shape", default="", choices=("", *SHAPES), help="Model; by device.")
    parser.add_argument("--with-nixl", action="store_true", help="Also NIXL between CPU pools.")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    asyncio.run(run(options))


async def run(options: argparse.Namespace) -> None:
    """Measures everything and reports."""
    writer, reader = devices(options.device)
    sizes = [int(size) * MIB for size in options.sizes_mib.split(",") if size]
    speeds = await all_speeds(options, writer, reader, sizes, is_private=False)
    nixl: list[Speed] = []
    if options.with_nixl and writer == "cpu":
        nixl = await all_speeds(options, writer, reader, sizes[:-1], is_private=True)
    lengths = [int(tokens) for tokens in options.tokens.split(",") if tokens]
    added = await all_added(options, writer, reader, lengths) if lengths else []
    details = {
        "devices": [device_name(writer), device_name(reader)],
        "block_bytes": options.block_kib << 10,
        "speeds": [asdict(speed) for speed in speeds],
        "nixl_between_cpu_pools": [asdict(speed) for speed in nixl],
        "added": [
            {**asdict(it), "share": it.share, "share_without_overlap": it.share_without_overlap}
            for it in added
        ],
    }
    name = "transfer" if options.device == "cpu" else "transfer-cuda"
    report.emit(name, figures(speeds, added), details, options.record)


def figures(speeds: Sequence[Speed], added: Sequence[Added]) -> dict[str, float | None]:
    """Returns the headline: the size from 64 MiB on with the lowest share, and two lengths."""
    large = [speed for speed in speeds if speed.size_bytes >= HEADLINE_FROM_BYTES]
    worst = min(large, key=lambda speed: speed.share, default=None)
    shares = {it.tokens: it.share for it in added}
    return {
        "gb_per_s": worst.gb_per_s if worst else None,
        "limit_gb_per_s": worst.limit_gb_per_s if worst else None,
        "share_of_limit": worst.share if worst else None,
        "cpu_s_per_gb": worst.cpu_s_per_gb if worst else None,
        "added_ttft_share_2k": shares.get(2048),
        "added_ttft_share_16k": shares.get(16384),
    }


async def all_speeds(
    options: argparse.Namespace, writer: str, reader: str, sizes: Sequence[int], is_private: bool
) -> list[Speed]:
    """Measures every size between two pools and prints a table."""
    if not sizes:
        return []
    block_bytes = options.block_kib << 10
    link = await connect(writer, reader, block_bytes, max(sizes) // block_bytes, is_private)
    try:
        speeds = [
            await measure(link, size, options.rounds) for size in report.steps(sizes, "sizes")
        ]
    finally:
        await disconnect(link)
    print(f"{writer} to {reader} by {link.path}, blocks of {options.block_kib} KiB")
    print(f"{'MiB':>8} {'GB/s':>8} {'limit':>8} {'share':>7} {'alone':>7} {'scattered':>10} "
          f"{'readv GB/s':>11} {'CPU-s/GB':>9}")  # fmt: skip
    for it in speeds:
        readv = "-" if it.cma_gb_per_s is None else f"{it.cma_gb_per_s:.2f}"
        print(f"{it.size_bytes // MIB:>8} {it.gb_per_s:>8.2f} {it.limit_gb_per_s:>8.2f} "
              f"{it.share:>7.2f} {it.share_alone:>7.2f} {it.share_scattered:>10.2f} {readv:>11} "
              f"{it.cpu_s_per_gb:>9.3f}", flush=True)  # fmt: skip
    return speeds


async def all_added(
    options: argparse.Namespace, writer: str, reader: str, lengths: Sequence[int]
) -> list[Added]:
    """Measures every prompt length and prints a table."""
    shape = options.shape or ("small" if writer == "cpu" else "1b")
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), shape, writer)
        bench = Bench(Path(folder), writer, reader, shape, max(lengths))
        path = await bench.start(last_core())
        try:
            added = [
                await bench.measure(it, options.prompt_rounds)
                for it in report.steps(lengths, "prompts")
            ]
        finally:
            await bench.stop()
    print(f"prefill of a random {shape} Llama in {dtype_on(writer)}, KV by {path}")
    print(f"{'tokens':>8} {'MB':>8} {'compute ms':>11} {'tail ms':>8} {'slowed ms':>10} "
          f"{'added':>7} {'no overlap':>11}")  # fmt: skip
    for it in added:
        print(f"{it.tokens:>8} {it.kv_bytes / 1e6:>8.1f} {1e3 * it.compute_s:>11.1f} "
              f"{1e3 * it.tail_s:>8.2f} {1e3 * it.slowed_s:>10.2f} {it.share:>7.2%} "
              f"{it.share_without_overlap:>11.2%}", flush=True)  # fmt: skip
    return added


def devices(kind: str) -> tuple[str, str]:
    """Returns where the writer's and the reader's pools lie."""
    if kind == "cpu":
        return "cpu", "cpu"
    return "cuda:0", f"cuda:{min(1, torch.cuda.device_count() - 1)}"


def device_name(device: str) -> str:
    """Returns the device's own name."""
    return device if device == "cpu" else torch.cuda.get_device_name(device)


def last_core() -> int | None:
    """Returns the core for the reader, away from the engine's, where there are two."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[-1] if len(cores) > 1 else None


if __name__ == "__main__":
    main()
