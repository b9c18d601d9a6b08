"""One prefill and one decode worker against two that do both: `make bench-disagg`.

    python -m bench.disagg [--work decode-heavy] [--device cuda --size 1b] [--resume]

Each worker has a core (taskset) or, with --device cuda, a GPU of its own; both share the only one.
Both arms run the same router, policies and requests. Router, Redis and client have the other cores
where there are more than two, else a small share of the same. The baseline's chunk size is tuned:
it runs with every size given and its best counts. What is measured is kept in --state after each
part, so that --resume goes on where an earlier run stopped.
A table is printed and, last, one JSON line.
"""

import argparse
import asyncio
import tempfile
from pathlib import Path

from bench import report
from bench.disagg.run import Bench, Settings
from bench.disagg.state import State
from bench.disagg.summary import figures, print_table, told
from bench.disagg.work import WORKLOADS

SIZES = ("mid", "100m", "1b", "8b")


def main() -> None:
    """Reads the command line, measures what is missing, tells what is known."""
    options = _options()
    state = State(options.state, keep=options.resume)
    settings = Settings(
        device=options.device,
        dtype=options.dtype,
        size=options.size,
        seconds=options.seconds,
        budgets=tuple(_budget(word) for word in options.budgets.split(",")),
        policy=options.policy,
        turns=options.turns,
        stretch=options.stretch,
        tpot_factor=options.tpot_factor,
        pace_prompt=options.pace_prompt,
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model or Path(scratch) / "model"
        bench = Bench(settings, state, folder, Path(scratch))
        for part in filter(None, options.work.split(",")):
            asyncio.run(bench.run(part))
    print_table(state)
    details = {"settings": vars(options) | {"state": "", "model": ""}, "parts": told(state)}
    name = "bench-disagg" if options.device == "cpu" else f"bench-disagg-{options.size}"
    report.emit(name, figures(state), details, options.record)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parts = ("engine", *WORKLOADS, "interference")
    parser.add_argument(
        "--work", default=",".join(parts), help="Parts, by commas; none only sums up."
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16"),
        help="auto: bfloat16 on GPUs and on cores that multiply it in tiles, else float32.",
    )
    parser.add_argument("--size", default="100m", choices=SIZES)
    parser.add_argument("--model", type=Path, help="Where the random model is kept.")
    parser.add_argument("--seconds", type=float, default=50.0, help="Of each turn of an arm.")
    parser.add_argument("--turns", type=int, default=2, help="Of each arm at each load.")
    parser.add_argument("--budgets", default="auto,64,128,256", help="Chunk sizes of the baseline.")
    parser.add_argument("--policy", default="latency", help="split_policy.policy of both arms.")
    parser.add_argument(
        "--stretch",
        type=float,
        help="Factor of prompt lengths; by default the one with which the mixed workload keeps "
        "both roles equally busy.",
    )
    parser.add_argument("--tpot-factor", type=float, help="TPOT target, in steps of a lone stream.")
    parser.add_argument(
        "--pace-prompt", type=int, default=512, help="Tokens of the prompt to take the pace from."
    )
    parser.add_argument("--state", type=Path, default=Path(".baton/bench-disagg.json"))
    parser.add_argument("--resume", action="store_true", help="Keep what --state holds.")
    parser.add_argument("--record", action="store_true")
    return parser.parse_args()


def _budget(word: str) -> int | None:
    return None if word == "auto" else int(word)


if __name__ == "__main__":
    main()
