"""What two workers on one machine take from each other without any mesh between them.

    python -m bench.disagg.neighbour '{"model": ..., "device": "cpu", ...}'

Streams are decoded by an engine on the first core, alone and beside a process that computes prompts
on the second one. The two know nothing of each other, so what the streams lose is the machine's:
caches, memory, and cores that are two threads of one. Prints both times as one JSON line.
"""

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path

import torch

from baton.engine.torch import TorchEngine
from bench.children import module
from bench.disagg import plain
from bench.disagg.work import prompt_ids

_STREAMS = 4
_ANSWER = 64
_ROUNDS = 12
_READY = "computing"


@dataclass(frozen=True, slots=True)
class Place:
    """A model and where one engine of it computes; cores and GPUs are those of both sides."""

    model: str
    device: str
    dtype: str
    kv_memory_mib: int
    prompt_tokens: int
    cores: Sequence[int]
    computes_prompts: bool = False

    def settle(self) -> None:
        """Keeps this process to its side's core or GPU."""
        side = int(self.computes_prompts)
        if self.device == "cpu":
            os.sched_setaffinity(0, {self.cores[side % len(self.cores)]})
            torch.set_num_threads(1)
        else:
            torch.cuda.set_device(side % torch.cuda.device_count())


async def _serve(place: Place) -> None:
    place.settle()
    device = "cpu" if place.device == "cpu" else f"cuda:{torch.cuda.current_device()}"
    engine = plain.open_engine(Path(place.model), device, place.dtype, place.kv_memory_mib)
    await plain.start(engine)
    try:
        if place.computes_prompts:
            await _compute_prompts(engine, place.prompt_tokens)
        else:
            print(json.dumps(await _compare(engine, place)))
    finally:
        await engine.stop()


async def _compute_prompts(engine: TorchEngine, tokens: int) -> None:
    """Never ends by itself."""
    for seed in count():
        await plain.answers(engine, [prompt_ids(tokens, seed)], [1])
        if seed == 0:
            print(_READY, flush=True)


async def _compare(engine: TorchEngine, place: Place) -> dict[str, float]:
    """Measures rounds alone and beside in turn, so that a drift of the machine is in both."""
    await _tpot_ms(engine, 0)
    alone, beside = [], []
    with _neighbour(place) as child:
        for number in range(_ROUNDS):
            child.send_signal(signal.SIGSTOP)
            alone.append(await _tpot_ms(engine, 2 * number))
            child.send_signal(signal.SIGCONT)
            beside.append(await _tpot_ms(engine, 2 * number + 1))
    return {"alone_ms": statistics.median(alone), "beside_ms": statistics.median(beside)}


async def _tpot_ms(engine: TorchEngine, seed: int) -> float:
    """Returns what a token of some streams at once takes."""
    prompts = [prompt_ids(48, 100 * seed + index) for index in range(_STREAMS)]
    started_s = time.perf_counter()
    await plain.answers(engine, prompts, [_ANSWER] * _STREAMS)
    return 1e3 * (time.perf_counter() - started_s) / _ANSWER


@contextmanager
def _neighbour(place: Place) -> Iterator["subprocess.Popen[str]"]:
    """Runs the other side."""
    there = json.dumps(asdict(replace(place, computes_prompts=True)))
    with subprocess.Popen(  # noqa: S603 - our own arguments
        module("bench.disagg.neighbour", there), stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            if child.stdout.readline().strip() != _READY:
                raise RuntimeError("the neighbour ended before it computed")
            yield child
        finally:
            child.kill()


if __name__ == "__main__":
    asyncio.run(_serve(Place(**json.loads(sys.argv[1]))))
