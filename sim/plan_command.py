"""What `baton plan` does once its options are read."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table

from baton.collector import quieten_collector
from sim.experiment import Experiment, Run, run_seeds
from sim.fleet import MIXED_BUDGET, FleetSpec
from sim.planner import ATTAINMENT, Planner, Sized, chunked, splits
from sim.results import plots
from sim.results.summary import Estimate, as_json, summarise
from sim.setting import Setting, progress_bar, promising
from sim.setup import PolicySpec

_PAST = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)


@dataclass(frozen=True, slots=True)
class PlanQuestion:
    """The command's options."""

    setting: Setting
    gpus: int
    policy: str = "latency"
    attainment: float = ATTAINMENT


@dataclass(frozen=True, slots=True)
class Plan:
    """The best split and the aggregated fleet of the same size, with several seeds each."""

    split: Sized
    flat: Sized
    split_runs: Sequence[Run]
    flat_runs: Sequence[Run]
    simulations: int

    @property
    def ratio(self) -> float | None:
        """The split's goodput per GPU over the aggregated fleet's; None when that has none."""
        flat = _figure(self.flat_runs, "goodput_per_gpu_s")
        split = _figure(self.split_runs, "goodput_per_gpu_s")
        return split.mean / flat.mean if flat and split and flat.mean else None


def plan(question: PlanQuestion, console: Console) -> Plan | None:
    """Searches, shows what came out and why; None when no fleet of this size attains the limits.

    Raises TraceError, UnknownHardwareError, or ValueError when the GPUs make less than two workers.
    """
    quieten_collector()
    base = _experiment(question, console)
    setting = question.setting
    with progress_bar(console) as progress:
        fleets = [replace(base, fleet=fleet) for fleet in splits(base.fleet)]
        task = progress.add_task("aggregated", total=len(fleets) + 3)
        planner = Planner(question.attainment, lambda what: progress.update(task, description=what))

        def each() -> Iterator[Experiment]:
            for experiment in fleets:
                yield experiment
                progress.advance(task)

        unsplit = planner.best(chunked(base)) or [planner.capacity(base)]
        flat = planner.past_the_knee(unsplit[-1])
        progress.advance(task)
        found = planner.best(each())
        if not found:
            console.print("no split of these workers meets the limits at any load")
            return None
        split = planner.past_the_knee(found[-1])
        runs = []
        for sized in (split, flat):
            progress.update(task, description=f"{sized.experiment.fleet.label}, all seeds")
            at = sized.experiment.at(sized.load or 1.0)
            runs.append(run_seeds(at, setting.seed_range))
            progress.advance(task)
    made = Plan(split, flat, runs[0], runs[1], planner.runs)
    _show(question, made, console)
    if setting.json_file is not None:
        setting.json_file.write_text(json.dumps(_values(question, made), indent=1))
    if setting.plot_folder is not None:
        _plot(question, made)
    return made


def _experiment(question: PlanQuestion, console: Console) -> Experiment:
    setting = question.setting
    machine = setting.machine(console)
    workers = question.gpus // machine.gpus
    if workers < 2:
        raise ValueError(
            f"{question.gpus} GPUs make {workers} workers of {machine.gpus} GPUs each; a split "
            f"needs two, so give --gpus {2 * machine.gpus} or other --hardware"
        )
    trace = setting.workload(console)
    policies = PolicySpec(
        question.policy, promising(setting.config, setting.slo), True, MIXED_BUDGET
    )
    fleet = FleetSpec(machine, aggregated=workers, kv_tokens=setting.kv_tokens)
    return Experiment(fleet, trace, policies, setting.slo)


def _show(question: PlanQuestion, made: Plan, console: Console) -> None:
    slo = question.setting.slo
    table = Table(
        title=f"{made.split.experiment.trace.name}: the most that {question.gpus} GPUs serve with "
        f"{question.attainment:.0%} within TTFT {slo.ttft_s:g} s and TPOT {slo.tpot_s * 1e3:g} ms",
        title_justify="left",
        box=None,
    )
    for heading in ("fleet", "load", "goodput/s", "per GPU/s", "TTFT p99", "TPOT p99", "gives way"):
        table.add_column(heading, justify="left" if heading == "fleet" else "right")
    for sized, runs in ((made.split, made.split_runs), (made.flat, made.flat_runs)):
        table.add_row(
            sized.experiment.fleet.label,
            f"{sized.load:.2f}x",
            _text(_figure(runs, "goodput_per_s")),
            _text(_figure(runs, "goodput_per_gpu_s")),
            _text(_figure(runs, "ttft_p99_s"), " s"),
            _text(_figure(runs, "tpot_p99_s"), " ms", 1e3),
            sized.gives_way,
        )
    console.print(table)
    console.print(explain(made), soft_wrap=True)


def explain(made: Plan) -> str:
    """Returns what to run and why, in sentences."""
    split, fleet = made.split.experiment.fleet.label, made.flat.experiment.fleet
    flat = f"{fleet.label} with chunks of {fleet.mixed_budget}"
    ratio = made.ratio
    if ratio is None:
        return f"Run {split}: the aggregated fleet {flat} meets the limits at no load."
    figures = made.split.run.metrics.figures if made.split.run else {}
    busy = (
        f"{split} keeps its prefill workers {figures.get('prefill_utilisation') or 0:.0%} and its "
        f"decode workers {figures.get('decode_utilisation') or 0:.0%} busy"
    )
    why = (
        f"above its capacity {flat} misses {made.flat.gives_way} first, {split} "
        f"{made.split.gives_way}; {busy}"
    )
    if ratio >= 1:
        return f"Run {split}: {ratio:.2f} times the goodput per GPU of {flat}. Why: {why}."
    return f"Run {flat}: no split is better; the best, {split}, has {ratio:.2f} times. Why: {why}."


def _figure(runs: Sequence[Run], name: str) -> Estimate | None:
    return summarise([run.metrics for run in runs]).get(name)


def _text(value: Estimate | None, unit: str = "", scale: float = 1.0) -> str:
    if value is None:
        return "-"
    spread = "" if value.half_width is None else f" \u00b1{scale * value.half_width:.2g}"
    return f"{scale * value.mean:.3g}{spread}{unit}"


def _values(question: PlanQuestion, made: Plan) -> dict[str, object]:
    return {
        "trace": made.split.experiment.trace.name,
        "hardware": made.split.experiment.fleet.hardware.describe(),
        "gpus": question.gpus,
        "ttft_slo_s": question.setting.slo.ttft_s,
        "tpot_slo_s": question.setting.slo.tpot_s,
        "attainment": question.attainment,
        "simulations": made.simulations,
        "goodput_ratio": made.ratio,
        "advice": explain(made),
        "fleets": [
            {
                "fleet": sized.experiment.fleet.label,
                "load": sized.load,
                "gives_way": sized.gives_way,
                **as_json([run.metrics for run in runs]),
            }
            for sized, runs in ((made.split, made.split_runs), (made.flat, made.flat_runs))
        ],
    }


def _plot(question: PlanQuestion, made: Plan) -> None:
    """Draws both fleets up to twice the split's capacity, all seeds."""
    setting = question.setting
    assert setting.plot_folder is not None
    curves: dict[str, list[tuple[float, Estimate]]] = {}
    for sized in (made.split, made.flat):
        for factor in _PAST:
            runs = run_seeds(sized.experiment.at(made.split.load * factor), setting.seed_range)
            recorder, value = runs[0].recorder, _figure(runs, "goodput_per_s")
            if value is not None and recorder.span_s:
                offered = recorder.everyone.offered / recorder.span_s
                curves.setdefault(sized.experiment.fleet.label, []).append((offered, value))
    plots.goodput_over_load(setting.plot_folder / "plan", curves)
