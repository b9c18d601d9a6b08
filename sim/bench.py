"""`make bench-sim`: how fast the simulator is and what it says, as tables and one JSON line."""

import asyncio
import resource
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from baton.config import Config
from bench.parity.times import QUANTILES, compare_times, schedule
from bench.report import emit, note
from sim.bench_speed import speeds
from sim.costs.hardware import Hardware
from sim.costs.presets import H100_COPY, UnknownHardwareError, hardware
from sim.experiment import Experiment, LimitedTrace, Run, run_seeds
from sim.fleet import MIXED_BUDGET, FleetSpec
from sim.planner import Planner, splits
from sim.results import plots
from sim.results.recorder import Recorder, Slo
from sim.results.summary import Estimate, summarise
from sim.results.table import comparison, width
from sim.setting import promising
from sim.setup import PolicySpec
from sim.traces.arrivals import Arrivals
from sim.traces.find import find
from sim.traces.synthetic import InterferenceTrace, MixTrace
from sim.workload import Trace

SEEDS = (1, 2, 3)
KNEE_LOADS = (0.5, 1.0, 1.5, 2.0)
"""Loads that are compared, relative to what the best split serves."""
# Mooncake's limit for TTFT at these lengths, the chapter's for TPOT: a decode step takes 30 ms.
CONVERSATION_SLO = Slo(ttft_s=30.0, tpot_s=0.05)
CODE_SLO = Slo(ttft_s=2.0, tpot_s=0.05)
MIX_SLO = Slo(ttft_s=2.0, tpot_s=0.06)
FIGURES = Path(__file__).resolve().parents[1] / "docs" / "figures"


@dataclass(frozen=True, slots=True)
class Case:
    """A trace on as many workers, and the limits."""

    name: str
    trace: Trace
    workers: int
    slo: Slo


@dataclass(slots=True)
class Found:
    """What a comparison found."""

    split: str = ""
    split_load: float = 0.0
    flat_load: float = 0.0
    ratio: float | None = None
    at_loads: list[dict[str, Any]] = field(default_factory=list)


def main(
    requests: Annotated[int, typer.Option(help="Of each trace, for the comparisons.")] = 3000,
    parity: Annotated[bool, typer.Option(help="Compare with a mesh on CPU workers.")] = True,
    record: Annotated[bool, typer.Option(help="Keep the result and the plots.")] = False,
) -> None:
    """Print the tables and, last, the JSON line; null is what was not measured."""
    console = Console(width=width(2))
    found = find("conversation")
    if found.note:
        console.print(f"note: {found.note}")
    machine = _hardware(console)
    console.print(machine.describe(), soft_wrap=True)
    code = find("azure-code")
    details: dict[str, Any] = {"speed": speeds(console, machine, found.trace)}
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    folder = FIGURES if record else None
    talk = Case("conversation", LimitedTrace(found.trace, requests), 16, CONVERSATION_SLO)
    compared = _compare(console, machine, talk, folder)
    details["conversation"] = compared
    if not code.note:
        short = Case("azure-code", LimitedTrace(code.trace, requests), 4, CODE_SLO)
        details["azure-code"] = _compare(console, machine, short, folder)
    at_one = _at_one(console, machine, found.trace, compared)
    mix = _mix(console, machine)
    details["interference_aggregated"], interference = _interference(console, machine)
    errors = _parity(console) if parity else {}
    details["parity"] = errors
    seconds = {it["workers"]: it["seconds"] for it in details["speed"]}
    emit(
        "sim",
        {
            "seconds_conversation_16w": seconds[16],
            "seconds_conversation_1024w": seconds[1024],
            "peak_mb": peak_mb,
            "goodput_ratio_tpot_bound": compared.ratio,
            "oracle_agreement": _mean(at_one, "oracle_agreement"),
            "offload_share": _mean(mix, "offload_share"),
            "hit_share_of_ideal": _mean(at_one, "hit_share_of_ideal"),
            "interference": interference,
            "parity_p50_error": errors.get("p50"),
            "parity_p99_error": errors.get("p99"),
        },
        {name: _plain(value) for name, value in details.items()},
        record,
    )


def _hardware(console: Console) -> Hardware:
    try:
        return hardware("h100")
    except UnknownHardwareError as error:
        console.print(f"note: {error}", soft_wrap=True)
        return H100_COPY


def _compare(console: Console, machine: Hardware, case: Case, folder: Path | None) -> Found:
    """Finds the best split of the workers, then compares it with none up to twice its knee."""
    base = _experiment(FleetSpec(machine, aggregated=case.workers), case.trace, case.slo)
    planner = Planner(report=note)
    flat = planner.capacity(base)
    sized = planner.best(replace(base, fleet=fleet) for fleet in splits(base.fleet))
    if not sized:
        return Found(flat_load=flat.load)
    best = sized[-1]
    found = Found(best.experiment.fleet.label, best.load, flat.load)
    at_capacity = [_summary(run_seeds(it.experiment.at(it.load), SEEDS)) for it in (best, flat)]
    rates = [_mean(summary, "goodput_per_s") for summary in at_capacity]
    found.ratio = rates[0] / rates[1] if rates[0] and rates[1] else None
    curves: dict[str, list[tuple[float, Estimate]]] = {}
    recorders: dict[str, Recorder] = {}
    for share in KNEE_LOADS:
        columns = []
        for experiment in (best.experiment, flat.experiment):
            runs = run_seeds(experiment.at(share * best.load), SEEDS)
            summary, recorder = _summary(runs), runs[0].recorder
            columns.append((experiment.label.replace(" ", "\n"), summary))
            recorders[experiment.fleet.label] = recorder
            value = summary["goodput_per_s"]
            if value is not None:
                offered = recorder.everyone.offered / recorder.span_s
                curves.setdefault(experiment.fleet.label, []).append((offered, value))
        load = share * best.load
        console.print(comparison(f"{case.trace.name} at {load:.2f}x ({share:g} knees)", columns))
        found.at_loads.append(
            {"load": load, **{name.split("\n")[0]: _means(summary) for name, summary in columns}}
        )
        if folder is not None and share == 1.0:
            plots.cdfs(folder / f"{case.name}-latency", recorders)
    if folder is not None:
        plots.goodput_over_load(folder / f"{case.name}-goodput", curves)
        plots.timeline(folder / f"{case.name}-timeline", recorders)
    console.print(
        f"{case.name}: {found.split} serves {best.load:.2f}x, {flat.experiment.fleet.label} "
        f"{flat.load:.2f}x; goodput ratio {found.ratio or 0:.2f}"
    )
    return found


def _at_one(
    console: Console, machine: Hardware, trace: Trace, compared: Found
) -> dict[str, Estimate | None]:
    """Returns the figures of the best split on the whole trace at its recorded speed."""
    prefill = int(compared.split.partition("P")[0] or 8)
    fleet = FleetSpec(machine, prefill, 16 - prefill)
    summary = _summary(run_seeds(_experiment(fleet, trace, CONVERSATION_SLO), SEEDS))
    console.print(comparison(f"{trace.name}, whole, at 1x", [(fleet.label, summary)]))
    return summary


def _mix(console: Console, machine: Hardware) -> dict[str, Estimate | None]:
    trace = MixTrace(4000, Arrivals(40.0))
    fleet = FleetSpec(machine, 2, 4)
    summary = _summary(run_seeds(_experiment(fleet, trace, MIX_SLO), SEEDS))
    console.print(comparison(trace.name, [(fleet.label, summary)]))
    return summary


def _interference(console: Console, machine: Hardware) -> tuple[float | None, float | None]:
    """Returns how much higher the chats' TPOT p99 is with heavy prefill beside: without a split,
    and with one."""
    quotients = []
    for fleet in (FleetSpec(machine, aggregated=4), FleetSpec(machine, 2, 2)):
        tails = []
        for has_long in (False, True):
            trace = InterferenceTrace(has_long)
            runs = run_seeds(_experiment(fleet, trace, MIX_SLO), SEEDS)
            tails.append(_mean(_summary(runs), "short_tpot_p99_s"))
        without, beside = tails
        quotients.append(beside / without - 1 if beside and without else None)
        shown = "-" if quotients[-1] is None else f"{100 * quotients[-1]:.1f} %"
        console.print(f"chats' TPOT p99 beside long prompts, {fleet.label}: +{shown}")
    return quotients[0], quotients[1]


def _parity(console: Console) -> dict[str, float | None]:
    """Compares TTFT and TPOT with a mesh of embedded engines, 1P+1D, and returns the larger
    error of the two at each quantile."""
    seen = asyncio.run(compare_times(schedule(2, 120, 0.5)))
    console.print(seen.probed.describe(), soft_wrap=True)
    errors: dict[str, float | None] = {"others": seen.others}
    for name, share in QUANTILES:
        for what in ("ttft", "tpot"):
            real, made = seen.both(what, share)
            errors[f"{what}_{name}"] = error = seen.error(what, share)
            console.print(
                f"{what} {name}: mesh {1e3 * real:.1f} ms, simulator {1e3 * made:.1f} ms, "
                f"error {error:.1%}"
            )
        errors[name] = max(seen.error(what, share) for what in ("ttft", "tpot"))
    if seen.others is not None:
        console.print(f"other processes used {seen.others:.0%} of the machine meanwhile")
    return errors


def _experiment(fleet: FleetSpec, trace: Trace, slo: Slo) -> Experiment:
    policies = PolicySpec("latency", promising(Config(), slo), True, MIXED_BUDGET)
    return Experiment(fleet, trace, policies, slo)


def _summary(runs: Sequence[Run]) -> dict[str, Estimate | None]:
    return summarise([run.metrics for run in runs])


def _mean(summary: dict[str, Estimate | None], name: str) -> float | None:
    value = summary.get(name)
    return None if value is None else round(value.mean, 4)


def _means(summary: dict[str, Estimate | None]) -> dict[str, Any]:
    return {name: value._asdict() for name, value in summary.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, Found):
        return {name: getattr(value, name) for name in Found.__slots__}
    return value


if __name__ == "__main__":
    typer.run(main)
