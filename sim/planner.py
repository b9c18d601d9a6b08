"""Which fleet of a given size serves the most within limits: every split, and no split.

A fleet's capacity is the highest load at which at least `attainment` of all offered requests meet
both limits (DistServe's definition of goodput). It is found by bisection; a fleet that falls short
at the best capacity known so far is out after that one run.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from sim.experiment import Experiment, Run, run_once
from sim.fleet import MIXED_BUDGET, FleetSpec

ATTAINMENT = 0.9
PRECISION = 1.04
"""Two loads closer than this factor are one."""

CHUNKS = (256, 512, MIXED_BUDGET)
"""Tokens of a step of the fleet without a split: it is compared at the best of these."""

_FURTHEST = 64.0

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Sized:
    """A fleet and the highest load that it serves, relative to the trace's; 0 when it never does.

    `run` is at that load, `beyond` at a load somewhat above, where it shows what gives way first.
    """

    experiment: Experiment
    load: float
    run: Run | None = None
    beyond: Run | None = None

    @property
    def goodput_per_gpu_s(self) -> float:
        """Requests per second and GPU within both limits, at that load."""
        return 0.0 if self.run is None else self.run.metrics.figures["goodput_per_gpu_s"] or 0.0

    @property
    def gives_way(self) -> str:
        """What is missed first above the capacity: TTFT or TPOT."""
        if self.beyond is None:
            return ""
        figures = self.beyond.metrics.figures
        ttft, tpot = figures["ttft_missed"] or 0.0, figures["tpot_missed"] or 0.0
        return "TTFT" if ttft > tpot else "TPOT"


class Planner:
    """Searches fleets; `report` is told before each run what is tried."""

    def __init__(self, attainment: float = ATTAINMENT, report: Report | None = None) -> None:
        self.runs = 0
        self._attainment = attainment
        self._report = report

    def capacity(self, experiment: Experiment, at_least: float = 0.0) -> Sized:
        """Returns the highest load; 0 without further search when it is below `at_least`."""
        low, high, run = 0.0, _FURTHEST, None
        load = at_least or 1.0
        while 1 / _FURTHEST <= load < _FURTHEST and high > low * PRECISION:
            tried = self._try(experiment, load)
            if self._attains(tried):
                low, run = load, tried
            elif load == at_least:
                break
            else:
                high = load
            load = _next_load(low, high)
        return Sized(experiment, low, run)

    def past_the_knee(self, sized: Sized, factor: float = 1.25) -> Sized:
        """Returns the fleet with a run above its capacity."""
        load = max(sized.load, 1 / _FURTHEST) * factor
        return replace(sized, beyond=self._try(sized.experiment, load))

    def best(self, experiments: Iterator[Experiment]) -> list[Sized]:
        """Returns the fleets that were the best so far as they were found: the last is the best."""
        found: list[Sized] = []
        for experiment in experiments:
            floor = found[-1].load * PRECISION if found else 0.0
            sized = self.capacity(experiment, floor)
            if sized.load > 0.0:
                found.append(sized)
        return found

    def _try(self, experiment: Experiment, load: float) -> Run:
        self.runs += 1
        if self._report is not None:
            self._report(f"{experiment.fleet.label} at {load:.2f}x")
        return run_once(experiment.at(load), 1, asks_oracle=False)

    def _attains(self, run: Run) -> bool:
        return (run.metrics.figures["goodput"] or 0.0) >= self._attainment


def splits(flat: FleetSpec) -> Iterator[FleetSpec]:
    """Yields every split of an aggregated fleet's workers, from the middle outwards."""
    workers = flat.aggregated
    middle = workers / 2
    for prefill in sorted(range(1, workers), key=lambda count: (abs(count - middle), count)):
        yield replace(flat, aggregated=0, prefill=prefill, decode=workers - prefill)


def chunked(flat: Experiment) -> Iterator[Experiment]:
    """Yields an aggregated fleet with steps of several sizes: none is best for all limits."""
    for tokens in CHUNKS:
        fleet = replace(flat.fleet, mixed_budget=tokens)
        yield replace(flat, fleet=fleet, policies=replace(flat.policies, chunk_tokens=tokens))


def _next_load(low: float, high: float) -> float:
    """Doubles or halves until both ends are known, then takes the middle of the factor between."""
    if high == _FURTHEST:
        return 2 * low
    return high / 2 if low == 0.0 else (low * high) ** 0.5
