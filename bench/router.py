"""`make bench-router`: what the router costs, alone and beside sglang-router doing the same work.

Both routers get the same number of requests outstanding, prompts of the same size and answers of
16 tokens from workers that take the same time per token and compute nothing. Ours gets token ids
and streams text and tokens; sglang-router gets text, which it does not tokenise either. CPU time
is that of the router's process alone, over a measured window. Each mode is compared with the same
mode: four workers that compute prompts themselves, and two that do with two that decode. The
figures are of the first. Rounds alternate between the two routers, so that both see the same noise;
the figures are medians over rounds, ratios are per round.
"""

import asyncio
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.children import module, run_for_json
from bench.decisions import measure_decisions
from bench.mesh import MeshPlan, running_mesh
from bench.report import emit, note, steps
from bench.rivals import interpreter, running_sglang_router

_MICRO = 1e6
_INSTANT = ("--prefill-token-us", "0", "--transfer-ms", "0")
_PACED_MS = 10.0
_OURS, _RIVAL = "baton", "sglang"


@dataclass(frozen=True, slots=True)
class Mode:
    """Workers of both routers; `suffix` goes behind the routers' names."""

    suffix: str
    prefill: int
    decode: int


REGULAR = Mode("", 0, 4)
DISAGGREGATED = Mode("_pd", 2, 2)


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of work. `step_ms` is the workers' time per token."""

    name: str
    prompt_tokens: int
    output_tokens: int
    concurrency: int
    step_ms: float
    shared_tokens: int = 0
    groups: int = 1

    def options(self, seconds: float, seed: int) -> list[str]:
        """Returns the options of either load generator."""
        values = {
            "seconds": seconds,
            "concurrency": self.concurrency,
            "prompt-tokens": self.prompt_tokens,
            "output-tokens": self.output_tokens,
            "shared-tokens": self.shared_tokens,
            "groups": self.groups,
            "seed": seed,
        }
        return [text for name, value in values.items() for text in (f"--{name}", str(value))]


SHORT = Work("short", 64, 16, 128, 1.0)
LONG_PROMPT = Work("4k", 4096, 16, 48, 1.0, shared_tokens=3072, groups=64)
STREAM = Work("stream", 64, 256, 64, _PACED_MS)

Cell = dict[str, Any]
Rounds = dict[tuple[str, str], list[Cell]]
"""Results of every round, by router and work."""


@dataclass(frozen=True, slots=True)
class Options:
    """How long to measure, and what to compare with."""

    seconds: float
    rounds: int
    python: str | None
    settings: Mapping[str, str]
    works: Sequence[Work]


async def measure(options: Options, directory: Path) -> Rounds:
    """Runs all rounds of all work."""
    rounds: Rounds = {}
    for mode in (REGULAR, DISAGGREGATED):
        here = directory / f"mode{mode.suffix}"
        await _measure_at_pace(options, here / "near-zero", mode, options.works, rounds)
        await _measure_at_pace(options, here / "paced", mode, [STREAM], rounds)
    return rounds


async def _measure_at_pace(
    options: Options, directory: Path, mode: Mode, works: Sequence[Work], rounds: Rounds
) -> None:
    step_ms = works[0].step_ms
    pace = ("--step-ms", str(step_ms), *_INSTANT)
    plan = MeshPlan(mode.prefill, mode.decode, pace, settings=options.settings)
    async with AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(running_mesh(plan, directory))
        targets: dict[str, tuple[str, list[str], int]] = {
            _OURS: ("bench.load", ["--address", mesh.router_address], mesh.router_pid)
        }
        if options.python is not None:
            rival = await stack.enter_async_context(
                running_sglang_router(
                    options.python, directory, step_ms, disaggregated=bool(mode.prefill)
                )
            )
            targets[_RIVAL] = ("bench.http_load", ["--port", str(rival.port)], rival.pid)
        for seed in steps(range(1, options.rounds + 1), "rounds"):
            for work in works:
                for name, (load, where, pid) in targets.items():
                    label = f"{name}{mode.suffix}"
                    command = module(
                        load, *where, "--watch", str(pid), *work.options(options.seconds, seed)
                    )
                    cell = await run_for_json(f"{label}-{work.name}-{seed}", command, directory)
                    rounds.setdefault((label, work.name), []).append(cell)
                    note(_summary(label, work, cell))


def _summary(label: str, work: Work, cell: Cell) -> str:
    return (
        f"{label:10} {work.name:7} {cell['requests_per_s']:8.0f} requests/s  "
        f"{_per_core(cell):8.0f} per core  "
        f"{_per_request_us(cell) or 0:8.0f} us/request  {_per_token_us(cell) or 0:7.1f} us/token  "
        f"{cell['tokens'] / max(1, cell['messages']):5.1f} tokens/message  "
        f"ttft p50 {cell['ttft_ms'].get('p50', 0):.1f} ms  errors {cell['errors']}"
    )


def _per_request_us(cell: Cell) -> float | None:
    return _MICRO * cell["watched_cpu_s"] / cell["completed"] if cell["completed"] else None


def _per_core(cell: Cell) -> float:
    """Returns the requests per second for each core that the router's process takes."""
    return float(cell["completed"] / max(cell["watched_cpu_s"], 1e-9))


def _per_token_us(cell: Cell) -> float | None:
    return _MICRO * cell["watched_cpu_s"] / cell["tokens"] if cell["tokens"] else None


def _per_second(cell: Cell) -> float | None:
    rate: float = cell["requests_per_s"]
    return rate


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _ratio(ours: Sequence[float | None], theirs: Sequence[float | None]) -> float | None:
    return _median([a / b for a, b in zip(ours, theirs, strict=False) if a and b])


def figures(rounds: Rounds, decision_ms: Mapping[str, float]) -> dict[str, float | None]:
    """Returns the figures that the benchmark is about, None where there is nothing to tell."""
    requests = {key: [_per_request_us(cell) for cell in cells] for key, cells in rounds.items()}
    tokens = {key: [_per_token_us(cell) for cell in cells] for key, cells in rounds.items()}
    ours_short, ours_stream = (_OURS, SHORT.name), (_OURS, STREAM.name)
    return {
        "generate_per_s": _median([_per_second(cell) for cell in rounds.get(ours_short, [])]),
        "decision_p50_ms": decision_ms.get("p50"),
        "decision_p99_ms": decision_ms.get("p99"),
        "cpu_us_per_request_short": _median(requests.get(ours_short, [])),
        "cpu_us_per_request_4k": _median(requests.get((_OURS, LONG_PROMPT.name), [])),
        "cpu_us_per_token": _median(tokens.get(ours_stream, [])),
        "ratio_cpu_request_vs_sglang_router": _ratio(
            requests.get(ours_short, []), requests.get((_RIVAL, SHORT.name), [])
        ),
        "ratio_cpu_token_vs_sglang_router": _ratio(
            tokens.get(ours_stream, []), tokens.get((_RIVAL, STREAM.name), [])
        ),
    }


def main() -> None:
    """Runs the command line."""
    typer.run(_command)


def _command(
    seconds: Annotated[float, typer.Option(help="Measured time of each cell. Seconds.")] = 6.0,
    rounds: Annotated[int, typer.Option(help="Rounds; figures are their medians.")] = 2,
    rival: Annotated[bool, typer.Option(help="Compare with sglang-router if it is there.")] = True,
    outstanding: Annotated[int, typer.Option(help="Short requests under way.")] = SHORT.concurrency,
    record: Annotated[bool, typer.Option(help="Keep the result in bench/results.")] = False,
    logs: Annotated[Path | None, typer.Option(help="Keep the processes' logs here.")] = None,
) -> None:
    """Measure the router."""
    python = interpreter() if rival else None
    if python is None:
        note("sglang-router is not compared (set SGLANG_ROUTER_PYTHON to a Python that has it)")
    # Rejecting and degrading would measure another thing.
    settings = {"BATON_QOS__ENABLE_EARLY_REJECTION": "false"}
    works = (replace(SHORT, concurrency=outstanding), LONG_PROMPT)
    options = Options(seconds, rounds, python, settings, works)
    decisions = measure_decisions()
    with tempfile.TemporaryDirectory() as temporary:
        measured = asyncio.run(measure(options, logs or Path(temporary)))
    details = {
        "decision": asdict(decisions),
        "work": [asdict(work) for work in (*works, STREAM)],
        "rounds": {f"{label} {work}": cells for (label, work), cells in measured.items()},
    }
    emit("bench-router", figures(measured, decisions.decision), details, record)


if __name__ == "__main__":
    main()
