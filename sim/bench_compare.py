"""A fleet's best split beside no split, up to twice the split's knee."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from baton.config import Config
from sim.costs.hardware import Hardware
from sim.experiment import Experiment, Run, run_once, run_seeds
from sim.fleet import FleetSpec
from sim.planner import Planner, Report, Sized, chunked, splits
from sim.results import plots
from sim.results.recorder import Recorder, Slo
from sim.results.summary import Estimate, summarise
from sim.results.table import comparison
from sim.setting import promising
from sim.setup import PolicySpec
from sim.workload import Trace

SEEDS = (1, 2, 3)
KNEE_LOADS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
"""Loads that are compared, relative to what the best split serves."""
SHOWN_LOADS = (0.5, 1.0, 2.0)
Summary = dict[str, Estimate | None]


@dataclass(frozen=True, slots=True)
class Case:
    """A trace on as many workers, and the limits."""

    name: str
    trace: Trace
    workers: int
    slo: Slo


@dataclass(slots=True)
class Compared:
    """What a comparison found. `at_loads` has both fleets' figures at each load."""

    split: str = ""
    split_load: float = 0.0
    flat_load: float = 0.0
    flat_chunk: int = 0
    ratio: float | None = None
    at_loads: list[dict[str, Any]] = field(default_factory=list)


class Comparison:
    """Searches both fleets' capacities and runs them at loads around the split's."""

    def __init__(
        self, console: Console, machine: Hardware, case: Case, report: Report, folder: Path | None
    ) -> None:
        self._console = console
        self._case = case
        self._report = report
        self._folder = folder
        self._base = experiment(FleetSpec(machine, aggregated=case.workers), case.trace, case.slo)
        self._curves: dict[str, list[tuple[float, Estimate]]] = {}

    def run(self) -> Compared:
        """Returns what was found, and shows and draws it."""
        planner = Planner(report=self._report)
        split = _last(planner.best(replace(self._base, fleet=it) for it in self._splits()))
        flat = _last(planner.best(chunked(self._base)))
        if split is None or flat is None:
            return Compared()
        found = Compared(
            split.experiment.fleet.label,
            split.load,
            flat.load,
            flat.experiment.fleet.mixed_budget,
            _ratio(self._at_capacity(split), self._at_capacity(flat)),
        )
        for share in KNEE_LOADS:
            found.at_loads.append(self._at(share, split.load, [split.experiment, flat.experiment]))
        if self._folder is not None:
            plots.goodput_over_load(self._folder / f"{self._case.name}-goodput", self._curves)
        self._console.print(
            f"{self._case.name}: {found.split} serves {split.load:.2f}x, "
            f"{flat.experiment.fleet.label} with chunks of {found.flat_chunk} "
            f"{flat.load:.2f}x; goodput ratio {found.ratio or 0:.2f}"
        )
        return found

    def _splits(self) -> Iterator[FleetSpec]:
        return splits(self._base.fleet)

    def _at_capacity(self, sized: Sized) -> float | None:
        self._report(f"{sized.experiment.fleet.label} at its capacity")
        return mean(summary(run_seeds(sized.experiment.at(sized.load), SEEDS)), "goodput_per_s")

    def _at(
        self, share: float, knee_load: float, experiments: Sequence[Experiment]
    ) -> dict[str, Any]:
        """Runs all at one load; shows, draws and returns their figures."""
        load = share * knee_load
        columns: list[tuple[str, Summary]] = []
        recorders: dict[str, Recorder] = {}
        for each in experiments:
            self._report(f"{self._case.name}: {each.fleet.label} at {share:g} knees")
            runs = run_seeds(each.at(load), SEEDS)
            recorders[each.fleet.label] = runs[0].recorder
            columns.append((each.label.replace(" ", "\n"), summary(runs)))
            self._note(each.fleet.label, columns[-1][1], runs[0].recorder)
        if share in SHOWN_LOADS:
            title = f"{self._case.trace.name} at {load:.2f}x ({share:g} knees)"
            self._console.print(comparison(title, columns))
        if self._folder is not None and share == 1.0:
            plots.cdfs(self._folder / f"{self._case.name}-latency", recorders)
        if self._folder is not None and share == KNEE_LOADS[-1]:
            turned = {each.fleet.label: self._admitting(each.at(load)) for each in experiments}
            plots.timeline(self._folder / f"{self._case.name}-timeline", turned)
        return {"load": load, **{name.split("\n")[0]: _means(it) for name, it in columns}}

    def _admitting(self, each: Experiment) -> Recorder:
        """Returns a run in which admission decides, for the times at which it turns away."""
        policies = replace(each.policies, admits_all=False)
        return run_once(replace(each, policies=policies), SEEDS[0], asks_oracle=False).recorder

    def _note(self, label: str, figures: Summary, recorder: Recorder) -> None:
        value = figures["goodput_per_s"]
        if value is not None and recorder.span_s:
            offered = recorder.everyone.offered / recorder.span_s
            self._curves.setdefault(label, []).append((offered, value))


def experiment(fleet: FleetSpec, trace: Trace, slo: Slo) -> Experiment:
    """Returns a run of the default policies that promise these limits; everybody is admitted."""
    policies = PolicySpec("latency", promising(Config(), slo), True, fleet.mixed_budget)
    return Experiment(fleet, trace, policies, slo)


def summary(runs: Sequence[Run]) -> Summary:
    """Returns the figures of several seeds."""
    return summarise([run.metrics for run in runs])


def mean(figures: Summary, name: str) -> float | None:
    """Returns one figure's mean."""
    value = figures.get(name)
    return None if value is None else round(value.mean, 4)


def _last(found: Sequence[Sized]) -> Sized | None:
    return found[-1] if found else None


def _ratio(split: float | None, flat: float | None) -> float | None:
    return split / flat if split and flat else None


def _means(figures: Summary) -> dict[str, Any]:
    return {name: value._asdict() for name, value in figures.items() if value is not None}
