"""Where the time goes: of the embedded engine's steps, or of any script.

    python -m bench.profile [--device cpu|cuda] [--size mid] [--trace FILE]
    python -m bench.profile path/to/script.py [its arguments]

Stands in for `torch.utils.bottleneck`, which torch no longer has: a script runs under the
interpreter's profiler and the torch profiler at once, and the tables of both are printed.
"""

import argparse
import asyncio
import cProfile
import pstats
import runpy
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile

from baton.engine.torch import TorchEngine
from bench.disagg.plain import answers, open_engine, start
from bench.disagg.work import prompt_ids
from bench.engine import SIZES, save_model

_ROWS = 25


def main() -> None:
    """Reads the command line and profiles."""
    if len(sys.argv) > 1 and sys.argv[1].endswith(".py"):
        script, sys.argv = sys.argv[1], sys.argv[1:]
        sys.path.insert(0, str(Path(script).resolve().parent))
        profile_script(lambda: runpy.run_path(script, run_name="__main__"))
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--size", default="mid", choices=tuple(SIZES))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=512, help="Tokens.")
    parser.add_argument("--answer", type=int, default=16, help="Tokens.")
    parser.add_argument("--trace", type=Path, help="Where to write a Chrome trace.")
    asyncio.run(profile_engine(parser.parse_args()))


async def profile_engine(options: argparse.Namespace) -> None:
    """Profiles one batch of requests on the engine: first their prompts, then their answers."""
    dtype = options.dtype
    if dtype == "auto":
        dtype = "float32" if options.device == "cpu" else "bfloat16"
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), options.size, options.device, dtype)
        engine = open_engine(Path(folder), options.device, dtype, 512)
        await start(engine)
    try:
        await _requests(engine, options, 2, seed=0)
        for title, answer in (("prompts", 1), ("prompts and answers", options.answer)):
            with _profiling() as profiler:
                await _requests(engine, options, answer, seed=1000 * answer)
            print(f"\n{title}: batch {options.batch}, {options.prompt} tokens, {answer} answered")
            print(_table(profiler))
        if options.trace is not None:
            profiler.export_chrome_trace(str(options.trace))
            print(f"trace for chrome://tracing or Perfetto: {options.trace}")
    finally:
        await engine.stop()


def profile_script(run: Callable[[], object]) -> None:
    """Runs a script under both profilers and prints what they saw."""
    python = cProfile.Profile()
    with _profiling() as profiler:
        python.enable()
        with suppress(SystemExit):
            run()
        python.disable()
    print("\nPython functions by their own time")
    pstats.Stats(python).sort_stats("tottime").print_stats(_ROWS)
    print("torch operators")
    print(_table(profiler))


async def _requests(
    engine: TorchEngine, options: argparse.Namespace, answer: int, seed: int
) -> None:
    prompts = [prompt_ids(options.prompt, seed + index) for index in range(options.batch)]
    await answers(engine, prompts, [answer] * options.batch)


def _profiling() -> profile:
    """Returns a profiler of all threads: the engine computes on one of its own."""
    has_gpu = torch.cuda.is_available()
    return profile(
        activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if has_gpu else [])],
        experimental_config=_ExperimentalConfig(profile_all_threads=True),
    )


def _table(profiler: profile) -> str:
    key = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    operators = profiler.key_averages()
    if not operators:
        return "none was called"
    table: str = operators.table(sort_by=key, row_limit=_ROWS, max_name_column_width=48)
    return table


if __name__ == "__main__":
    main()
