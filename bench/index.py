"""`make bench-index`: the prefix index on a real trace, alone and beside Dynamo's.

Every request of the trace is looked up, placed, and its new blocks stored; full workers remove
old ones. Times are CPU time of the process, since Dynamo's binding works on a thread of its own
(kept on one core, which suits it best). A look-up returns every worker's match length on both
sides.
"""

import json
import os
import pickle
import shutil
import statistics
import subprocess
import tempfile
import time
import tracemalloc
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from sys import executable
from typing import Annotated, Any

import typer

from baton.state.prefix_index import PrefixIndex
from bench.children import ChildFailed
from bench.index_work import IndexWork, make_work, read_chains
from bench.report import emit, note, steps

FLEETS = (8, 64, 256)
ENV_PYTHON = "DYNAMO_PYTHON"
ENV_TRACES = "BATON_TRACES"
_TRACE = Path("mooncake") / "conversation_trace.jsonl"
_HELD_TOKENS = 2_000_000
"""What each worker's cache holds."""

_SCRIPT = Path(__file__).with_name("dynamo_index.py")
_RIVAL_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Replayed:
    """Mean microseconds of CPU."""

    lookup_us: float
    apply_us_per_block: float


def replay(work: IndexWork) -> Replayed:
    """Runs the work on the router's index."""
    index = PrefixIndex()
    names = [f"worker-{number:03d}" for number in range(work.workers)]
    for name in names:
        index.add(name)
    looking = applying = 0.0
    blocks = 0
    clock = time.process_time
    for operation in work.operations:
        name = names[operation.worker]
        began_s = clock()
        index.match(operation.chain, 0.0)
        looked_s = clock()
        index.store(name, operation.stored)
        index.remove(name, operation.removed)
        applying += clock() - looked_s
        looking += looked_s - began_s
        blocks += len(operation.stored) + len(operation.removed)
    return Replayed(1e6 * looking / len(work.operations), 1e6 * applying / max(1, blocks))


def bytes_per_entry(work: IndexWork) -> float:
    """Returns the memory of an index that holds what the workers hold, per (block, worker)."""
    packed = [array("Q", hashes) for hashes in work.held]
    tracemalloc.start()
    index = PrefixIndex()
    for number, hashes in enumerate(packed):
        # New integers, as they come out of an event; shared ones would not be counted.
        index.store(f"worker-{number:03d}", hashes.tolist())
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size / max(1, work.entries)


def replay_dynamo(python: str, work: IndexWork) -> Replayed:
    """Runs the work on Dynamo's tree, in an interpreter that has it. Raises ChildFailed."""
    with tempfile.NamedTemporaryFile(suffix=".pickle") as file:
        pickle.dump((work.workers, [tuple(it) for it in work.operations]), file)
        file.flush()
        done = subprocess.run(  # noqa: S603 - our own script
            [python, str(_SCRIPT), file.name],
            capture_output=True,
            text=True,
            timeout=_RIVAL_TIMEOUT_S,
            check=False,
            env={**os.environ, "DYN_LOG": "error"},
        )
    if done.returncode:
        raise ChildFailed(f"the Dynamo binding failed:\n{done.stderr[-2000:]}")
    return Replayed(**_last_json(done.stdout))


def _last_json(output: str) -> dict[str, float]:
    value: dict[str, float] = json.loads(output.strip().splitlines()[-1])
    return value


def dynamo_python() -> str | None:
    """Returns the interpreter that has Dynamo's binding, or None."""
    named = os.environ.get(ENV_PYTHON)
    if named:
        return shutil.which(named)
    return executable if find_spec("dynamo") else None


def main() -> None:
    """Runs the command line."""
    typer.run(_command)


def _command(
    trace: Annotated[
        Path | None, typer.Option(help="Trace; default $BATON_TRACES/mooncake/...")
    ] = None,
    requests: Annotated[int, typer.Option(help="Requests of the trace.")] = 4000,
    block_tokens: Annotated[int, typer.Option(help="Tokens per block; divides 512.")] = 64,
    rounds: Annotated[int, typer.Option(help="Rounds; figures are their medians.")] = 3,
    record: Annotated[bool, typer.Option(help="Keep the result in bench/results.")] = False,
) -> None:
    """Measure the prefix index."""
    path = trace or Path(os.environ.get(ENV_TRACES, "traces")) / _TRACE
    if not path.is_file():
        note(f"{path} is missing: give --trace or set {ENV_TRACES}")
        raise typer.Exit(2)
    python = dynamo_python()
    if python is None:
        note(f"Dynamo is not compared (set {ENV_PYTHON} to a Python with ai-dynamo-runtime)")
    chains = list(read_chains(path, requests, block_tokens))
    ours: dict[int, list[Replayed]] = {}
    theirs: dict[int, list[Replayed]] = {}
    entry_bytes = None
    for workers in steps(FLEETS, "fleets"):
        work = make_work(chains, workers, _HELD_TOKENS // block_tokens)
        for _ in range(rounds):
            ours.setdefault(workers, []).append(replay(work))
            if python is not None:
                theirs.setdefault(workers, []).append(replay_dynamo(python, work))
        note(f"{workers} workers: {ours[workers]} {theirs.get(workers, '')}")
        if entry_bytes is None:
            entry_bytes = bytes_per_entry(work)
    details = {
        "requests": len(chains),
        "block_tokens": block_tokens,
        "blocks_per_request": statistics.mean(map(len, chains)),
        "baton": _medians(ours),
        "dynamo": _medians(theirs),
    }
    emit("bench-index", _figures(ours, theirs, entry_bytes), details, record)


def _figures(
    ours: Mapping[int, Sequence[Replayed]],
    theirs: Mapping[int, Sequence[Replayed]],
    entry_bytes: float | None,
) -> dict[str, float | None]:
    mine, other = _medians(ours), _medians(theirs)
    lookups = {f"lookup_us_{workers}w": mine[workers]["lookup_us"] for workers in FLEETS}
    # Speeds: above 1 ours is faster. The least favourable fleet speaks for all.
    ratios = [other[it]["lookup_us"] / mine[it]["lookup_us"] for it in FLEETS if it in other]
    return {
        **lookups,
        "apply_us_per_block": max(mine[workers]["apply_us_per_block"] for workers in FLEETS),
        "bytes_per_entry": entry_bytes,
        "ratio_lookup_vs_dynamo": min(ratios, default=None),
    }


def _medians(replayed: Mapping[int, Sequence[Replayed]]) -> dict[int, dict[str, Any]]:
    return {
        workers: {
            "lookup_us": statistics.median(it.lookup_us for it in rounds),
            "lookups_per_s": 1e6 / statistics.median(it.lookup_us for it in rounds),
            "apply_us_per_block": statistics.median(it.apply_us_per_block for it in rounds),
            "applied_blocks_per_s": 1e6 / statistics.median(it.apply_us_per_block for it in rounds),
        }
        for workers, rounds in replayed.items()
    }


if __name__ == "__main__":
    main()
