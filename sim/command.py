"""What `baton simulate` does once its options are read."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from baton.collector import quieten_collector
from sim.costs.hardware import Hardware
from sim.engine.links import LinkSpec
from sim.experiment import Experiment, Run, run_once
from sim.fleet import MIXED_BUDGET, FleetSpec
from sim.results import plots
from sim.results.summary import Estimate, as_json, summarise
from sim.results.table import comparison, width
from sim.setting import Setting, progress_bar, promising
from sim.setup import PolicySpec
from sim.workload import Trace


@dataclass(frozen=True, slots=True)
class Question:
    """The command's options. Bandwidth in bytes per second."""

    setting: Setting
    prefill: int
    decode: int
    aggregated: int
    policies: Sequence[str]
    rates: Sequence[float]
    compares_aggregated: bool = False
    admits_all: bool = False
    bandwidth: float = LinkSpec().bandwidth
    mixed_budget: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """An experiment at one load and its runs."""

    experiment: Experiment
    runs: Sequence[Run]

    @property
    def offered_per_s(self) -> float:
        """Requests per second that were offered."""
        recorder = self.runs[0].recorder
        return recorder.everyone.offered / recorder.span_s if recorder.span_s else 0.0

    @property
    def goodput_per_s(self) -> Estimate | None:
        """Requests per second within both limits."""
        return summarise([run.metrics for run in self.runs]).get("goodput_per_s")


def simulate(question: Question, console: Console) -> list[Answer]:
    """Runs all experiments and shows what came out, on the console and in the files asked for.

    Raises TraceError, UnknownHardwareError, or ValueError for a fleet or policy that cannot be.
    """
    quieten_collector()
    columns = len(question.policies) + question.compares_aggregated
    console.width = max(console.width, width(columns))
    setting = question.setting
    trace, machine = setting.workload(console), setting.machine(console)
    experiments = _experiments(question, trace, machine)
    answers = _run_all(question, experiments, console)
    for rate in question.rates:
        _show(question, [a for a in answers if a.experiment.rate == rate], console)
    if setting.json_file is not None:
        setting.json_file.write_text(json.dumps(_values(question, answers), indent=1))
    if setting.plot_folder is not None:
        _plot(setting.plot_folder, answers)
    return answers


def _experiments(question: Question, trace: Trace, machine: Hardware) -> list[Experiment]:
    setting = question.setting
    fleet = FleetSpec(
        machine,
        question.prefill,
        question.decode,
        question.aggregated,
        kv_tokens=setting.kv_tokens,
        link=LinkSpec(bandwidth=question.bandwidth),
        mixed_budget=question.mixed_budget or MIXED_BUDGET,
    )
    config = promising(setting.config, setting.slo)
    made = [
        Experiment(
            fleet,
            trace,
            PolicySpec(name, config, question.admits_all, fleet.mixed_budget),
            setting.slo,
        )
        for name in question.policies
    ]
    if question.compares_aggregated:
        flat = FleetSpec(
            fleet.hardware,
            aggregated=fleet.workers,
            mixed_budget=fleet.mixed_budget,
            kv_tokens=fleet.kv_tokens,
            link=fleet.link,
        )
        made.append(Experiment(flat, trace, made[0].policies, setting.slo))
    return made


def _run_all(
    question: Question, experiments: Sequence[Experiment], console: Console
) -> list[Answer]:
    seeds = question.setting.seed_range
    sizes = {each.fleet.pools_tokens: each for each in experiments}
    workloads = {
        (seed, size): each.workload(seed) for seed in seeds for size, each in sizes.items()
    }
    answers = []
    with progress_bar(console) as progress:
        total = sum(workload.requests for workload in workloads.values()) // len(sizes)
        runs = len(question.rates) * len(experiments)
        task = progress.add_task("requests", total=total * runs)
        for rate in question.rates:
            for experiment in (each.at(rate) for each in experiments):
                progress.update(task, description=f"{experiment.label} at {rate:g}x")
                done = [
                    run_once(
                        experiment,
                        seed,
                        lambda count: progress.advance(task, count),
                        workloads[seed, experiment.fleet.pools_tokens],
                    )
                    for seed in seeds
                ]
                answers.append(Answer(experiment, done))
    return answers


def _show(question: Question, answers: Sequence[Answer], console: Console) -> None:
    first = answers[0]
    slo = question.setting.slo
    title = (
        f"{first.experiment.trace.name} at {first.experiment.rate:g}x "
        f"({first.offered_per_s:.2f} req/s), TTFT {slo.ttft_s:g} s and TPOT "
        f"{slo.tpot_s * 1e3:g} ms, {question.setting.seeds} seeds"
    )
    columns = [
        (
            answer.experiment.label.replace(" ", "\n"),
            summarise([run.metrics for run in answer.runs]),
        )
        for answer in answers
    ]
    console.print(comparison(title, columns))
    for answer in answers:
        rejections = as_json([run.metrics for run in answer.runs])["rejections"]
        if rejections:
            listed = ", ".join(f"{reason} {count}" for reason, count in sorted(rejections.items()))
            console.print(f"rejected by {answer.experiment.label}, all seeds: {listed}")


def _values(question: Question, answers: Sequence[Answer]) -> dict[str, Any]:
    first = answers[0].experiment
    return {
        "trace": first.trace.name,
        "hardware": first.fleet.hardware.describe(),
        "ttft_slo_s": question.setting.slo.ttft_s,
        "tpot_slo_s": question.setting.slo.tpot_s,
        "results": [
            {
                "fleet": answer.experiment.fleet.label,
                "policy": answer.experiment.policies.routing,
                "rate": answer.experiment.rate,
                "offered_per_s": answer.offered_per_s,
                **as_json([run.metrics for run in answer.runs]),
            }
            for answer in answers
        ],
    }


def _plot(folder: Path, answers: Sequence[Answer]) -> None:
    curves: dict[str, list[tuple[float, Estimate]]] = {}
    for answer in answers:
        if answer.goodput_per_s is not None:
            point = (answer.offered_per_s, answer.goodput_per_s)
            curves.setdefault(answer.experiment.label, []).append(point)
    plots.goodput_over_load(folder / "goodput.png", curves)
    last_rate = answers[-1].experiment.rate
    recorders = {
        answer.experiment.label: answer.runs[0].recorder
        for answer in answers
        if answer.experiment.rate == last_rate
    }
    plots.cdfs(folder / "latency.png", recorders)
    plots.timeline(folder / "timeline.png", recorders)
