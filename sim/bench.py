"""`make bench-sim`: how fast the simulator is and what it says, as tables and one JSON line.

Parts can be measured one by one; with `--record` the figures of the others stay what they were
recorded as, and each part's record says of which code and on how busy a machine it is.
"""

import asyncio
import json
import resource
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from baton.collector import quieten_collector
from bench.parity.table import record, show
from bench.parity.times import MEASURES, QUANTILES, compare_times, schedule
from bench.report import RESULTS, commit, emit, machine
from sim import bench_figures
from sim.bench_compare import Case, Compared, Comparison, mean
from sim.bench_speed import speeds
from sim.costs.hardware import Hardware
from sim.costs.presets import H100_COPY, UnknownHardwareError, hardware
from sim.experiment import LimitedTrace
from sim.fleet import FleetSpec
from sim.planner import Report
from sim.results.recorder import Slo
from sim.results.table import width
from sim.setting import progress_bar
from sim.traces.find import find

PARTS = ("speed", "conversation", "azure-code", "figures", "parity")
# Mooncake's limit for TTFT at these lengths, the chapter's for TPOT: a decode step takes 30 ms.
CONVERSATION_SLO = Slo(ttft_s=30.0, tpot_s=0.05)
CODE_SLO = Slo(ttft_s=2.0, tpot_s=0.05)
FIGURES = Path(__file__).resolve().parents[1] / "docs" / "figures"
NAMES = (
    "seconds_conversation_16w",
    "seconds_conversation_1024w",
    "peak_mb",
    "goodput_ratio_tpot_bound",
    "oracle_agreement",
    "offload_share",
    "hit_share_of_ideal",
    "interference",
    "parity_p50_error",
    "parity_p99_error",
)

Figures = dict[str, float | None]
Part = Callable[[], tuple[Figures, Any]]
"""Measures; returns the figures of the JSON line, and everything else for the record."""


class Bench:
    """The parts. `report` hears what is being simulated."""

    def __init__(self, console: Console, requests: int, folder: Path | None) -> None:
        self._console = console
        self._requests = requests
        self._folder = folder
        self._machine = _hardware(console)
        self.report: Report = lambda what: None

    def parts(self) -> dict[str, Part]:
        """Returns the parts by name."""
        return {
            "speed": self._speed,
            "conversation": self._conversation,
            "azure-code": self._code,
            "figures": self._single,
            "parity": self._parity,
        }

    def _speed(self) -> tuple[Figures, Any]:
        found = speeds(self._console, self._machine, find("conversation").trace)
        seconds = {it["workers"]: it["seconds"] for it in found}
        return {
            "seconds_conversation_16w": seconds[16],
            "seconds_conversation_1024w": seconds[1024],
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }, found

    def _conversation(self) -> tuple[Figures, Any]:
        found = self._compare("conversation", 16, CONVERSATION_SLO)
        return {"goodput_ratio_tpot_bound": found.ratio}, asdict(found)

    def _code(self) -> tuple[Figures, Any]:
        return {}, asdict(self._compare("azure-code", 4, CODE_SLO))

    def _compare(self, name: str, workers: int, slo: Slo) -> Compared:
        trace = find(name)
        if trace.note:
            self._console.print(f"note: {trace.note}")
        case = Case(name, LimitedTrace(trace.trace, self._requests), workers, slo)
        return Comparison(self._console, self._machine, case, self.report, self._folder).run()

    def _single(self) -> tuple[Figures, Any]:
        whole = find("conversation").trace
        half = FleetSpec(self._machine, 8, 8)
        known = (self._console, self._machine, self.report)
        at_one = bench_figures.at_recorded_speed(
            self._console, half, whole, CONVERSATION_SLO, self.report
        )
        mix, interference = bench_figures.mix(*known), bench_figures.interference(*known)
        offloaded = {load: mean(figures, "offload_share") for load, figures in mix.items()}
        return {
            "oracle_agreement": mean(at_one, "oracle_agreement"),
            "offload_share": offloaded[f"{bench_figures.MIX_PER_S:g}/s"],
            "hit_share_of_ideal": mean(at_one, "hit_share_of_ideal"),
            "interference": interference["split"],
        }, {"offload_share": offloaded, "interference": interference}

    def _parity(self) -> tuple[Figures, Any]:
        """Compares TTFT and TPOT with a mesh of embedded engines, 1P+1D."""
        self.report("a mesh on this machine")
        parity = asyncio.run(compare_times(schedule(2, 200, 0.5)))
        show(self._console, parity)
        return {
            f"parity_{name}_error": max(parity.error(what, share) for what in MEASURES)
            for name, share in QUANTILES
        }, record(parity)


def main(
    parts: Annotated[str, typer.Option(help=f"Some of {', '.join(PARTS)}.")] = ",".join(PARTS),
    requests: Annotated[int, typer.Option(help="Of each trace, for the comparisons.")] = 2000,
    record: Annotated[bool, typer.Option(help="Keep the result and the plots.")] = False,
) -> None:
    """Print the tables and, last, the JSON line; null is what was not measured."""
    quieten_collector()
    console = Console(width=width(3))
    bench = Bench(console, requests, FIGURES if record else None)
    known = bench.parts()
    chosen = parts.split(",")
    if unknown := set(chosen) - set(known):
        raise typer.BadParameter(f"no part {', '.join(sorted(unknown))}", param_hint="--parts")
    figures: Figures = dict.fromkeys(NAMES)
    details: dict[str, Any] = {}
    if record:
        kept = _recorded()
        figures |= kept.get("figures", {})
        details |= kept.get("details", {})
    with progress_bar(Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(chosen))
        bench.report = lambda what: progress.update(task, description=what)
        for name in chosen:
            found, detail = known[name]()
            figures |= found
            details[name] = {"of": {"commit": commit(), **machine()}, "found": detail}
            progress.advance(task)
    emit("sim", figures, details, record)


def _recorded() -> dict[str, Any]:
    path = RESULTS / "sim.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def _hardware(console: Console) -> Hardware:
    try:
        found = hardware("h100")
    except UnknownHardwareError as error:
        console.print(f"note: {error}", soft_wrap=True)
        found = H100_COPY
    console.print(found.describe(), soft_wrap=True)
    return found


if __name__ == "__main__":
    typer.run(main)
