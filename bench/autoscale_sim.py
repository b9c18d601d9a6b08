"""What sizing by forecast saves, simulated: the policies and fixed fleets on one trace.

Compared are the `slo` policy, the chapter's
`thresholds` at several settings, and the fixed fleets of a grid. The best fixed fleet and the best
thresholds are the cheapest that meet the target, chosen in hindsight with the first seed, or the
nearest to it. A fixed fleet costs its size, so no larger ones are tried once one meets the target.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from bench.report import note
from services.autoscaler import sizing
from services.autoscaler.policy import ScalingPolicy, ThresholdPolicy, Thresholds
from services.autoscaler.slo_policy import SloPolicy, SloSettings
from services.autoscaler.state import Bounds
from sim.autoscale import Delays
from sim.autoscale_run import ScalingTask, run_scaled
from sim.costs.hardware import Hardware
from sim.costs.presets import H100_COPY, UnknownHardwareError, hardware
from sim.fleet import FleetSpec
from sim.results.recorder import Slo
from sim.traces.day import DayTrace
from sim.workload import Trace

TARGET = 0.97
SEEDS = (1, 2, 3)
LIMITS = Slo(ttft_s=2.0, tpot_s=0.2)
BOUNDS = Bounds(1, 12)
FIRST = (2, 1)
"""Workers that a sized fleet starts with."""

FIXED = ((2, 1), (2, 2), (3, 1), (3, 2), (4, 1), (4, 2), (5, 1), (5, 2), (6, 1), (7, 1))
THRESHOLDS = ((8.0, 2.0, 0.8, 0.4), (2.0, 0.0, 0.5, 0.2), (1.0, 0.0, 0.3, 0.1))
DAY = DayTrace(mean_per_s=3.0, day_s=7200.0, prompt_tokens=4000)


class Candidate(NamedTuple):
    """A way to size a fleet: `slo`, `thresholds` with their setting, or `fixed` with its sizes."""

    kind: str
    setting: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """For people."""
        return " ".join((self.kind, "+".join(f"{value:g}" for value in self.setting))).strip()


class Score(NamedTuple):
    """One run, or means over the seeds."""

    attainment: float
    worker_hours: float
    direction_changes_per_hour: float

    @property
    def rank(self) -> tuple[bool, float]:
        """Smaller is better: what meets the target by its hours, the rest by what it misses."""
        misses = self.attainment < TARGET
        return misses, TARGET - self.attainment if misses else self.worker_hours


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate and its means over the seeds."""

    name: str
    score: Score


def slo_policy(start_s: float) -> ScalingPolicy:
    """Returns the default policy as the service makes it, without flips."""
    limits = sizing.Slo(LIMITS.ttft_s, LIMITS.tpot_s)
    return SloPolicy(SloSettings(limits, BOUNDS, BOUNDS, 24, start_s=start_s, flips=False))


def threshold_policy(queue_up: float, queue_down: float, up: float, down: float) -> ScalingPolicy:
    """Returns the chapter's policy with these thresholds for prefill and its own for decode."""
    prefill = Thresholds(BOUNDS, queue_up, queue_down, up, down)
    return ThresholdPolicy(prefill, Thresholds(BOUNDS, 16, 4, 0.75, 0.3), cooldown_up_s=5.0)


def simulate(candidate: Candidate, seed: int, trace: Trace, start_s: float) -> Score:
    """Replays a trace once."""
    sizes = FIRST
    make: Callable[[], ScalingPolicy] | None = None
    match candidate.kind:
        case "slo":
            make = partial(slo_policy, start_s)
        case "thresholds":
            make = partial(threshold_policy, *candidate.setting)
        case _:
            sizes = (int(candidate.setting[0]), int(candidate.setting[1]))
    fleet = FleetSpec(machine(), *sizes)
    run = run_scaled(ScalingTask(trace, fleet, LIMITS, delays=Delays(start_s)), seed, make)
    return Score(run.attainment, run.worker_hours, run.direction_changes_per_hour)


def machine() -> Hardware:
    """Returns the machine that a worker is."""
    try:
        return hardware("h100")
    except UnknownHardwareError:
        return H100_COPY


@dataclass(frozen=True, slots=True)
class Bench:
    """Runs candidates on one trace, several at a time."""

    trace: Trace
    start_s: float
    seeds: Sequence[int]
    executor: Executor
    _known: dict[tuple[Candidate, int], Score] = field(default_factory=dict)

    def compare(self) -> dict[str, Scored]:
        """Returns the slo policy, the best thresholds and the best fixed fleet."""
        fixed = self._best_fixed()
        thresholds = self._best([Candidate("thresholds", it) for it in THRESHOLDS])
        chosen = {"slo": Candidate("slo"), "thresholds": thresholds, "best_fixed": fixed}
        return {name: self._mean(candidate) for name, candidate in chosen.items()}

    def _best_fixed(self) -> Candidate:
        for _, sizes in itertools.groupby(sorted(FIXED, key=sum), key=sum):
            best = self._best([Candidate("fixed", it) for it in sizes])
            if self._runs([best])[best].attainment >= TARGET:
                break
        return best

    def _best(self, candidates: Sequence[Candidate]) -> Candidate:
        runs = self._runs(candidates)
        return min(candidates, key=lambda it: runs[it].rank)

    def _runs(self, candidates: Sequence[Candidate]) -> Mapping[Candidate, Score]:
        """Returns what each candidate came to with the first seed."""
        self._simulate([(candidate, self.seeds[0]) for candidate in candidates])
        return {candidate: self._known[candidate, self.seeds[0]] for candidate in candidates}

    def _mean(self, candidate: Candidate) -> Scored:
        self._simulate([(candidate, seed) for seed in self.seeds])
        scores = [self._known[candidate, seed] for seed in self.seeds]
        mean = Score(*(sum(values) / len(scores) for values in zip(*scores, strict=True)))
        return Scored(candidate.name, mean)

    def _simulate(self, wanted: Sequence[tuple[Candidate, int]]) -> None:
        missing = [it for it in wanted if it not in self._known]
        run = partial(simulate, trace=self.trace, start_s=self.start_s)
        scores = self.executor.map(run, *zip(*missing, strict=True)) if missing else ()
        for (candidate, seed), score in zip(missing, scores, strict=True):
            self._known[candidate, seed] = score
            note(
                f"  {self.trace.name}: {candidate.name}, seed {seed}: "
                f"{100 * score.attainment:.1f} % within limits, {score.worker_hours:.2f} "
                f"worker-hours, {score.direction_changes_per_hour:.0f} changes of direction an hour"
            )
