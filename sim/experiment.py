"""One question to the simulator: a fleet, a workload, policies and limits, over several seeds."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from sim.fleet import FleetSpec
from sim.mesh import SimMesh
from sim.outcome import Outcome
from sim.results.ideal import Profile, profile
from sim.results.metrics import RunMetrics, measure
from sim.results.recorder import Recorder, Slo
from sim.setup import PolicySpec
from sim.workload import SimRequest, Trace, TraceOf

Progress = Callable[[int], None]
"""Told after some requests ended how many did."""

_REPORT_EVERY = 250


@dataclass(frozen=True, slots=True)
class LimitedTrace(TraceOf):
    """The first `count` requests of a trace."""

    count: int

    @property
    def name(self) -> str:
        """The trace's name and how much of it."""
        return f"{self.trace.name}, first {self.count}"

    def requests(self, seed: int, rate: float = 1.0) -> Iterator[SimRequest]:
        """See `Trace`."""
        return islice(self.trace.requests(seed, rate), self.count)


@dataclass(frozen=True, slots=True)
class Experiment:
    """What to run. `rate` multiplies the trace's load."""

    fleet: FleetSpec
    trace: Trace
    policies: PolicySpec
    slo: Slo
    rate: float = 1.0

    @property
    def label(self) -> str:
        """Fleet and policy in a few words."""
        return f"{self.fleet.label} {self.policies.routing}"

    def at(self, rate: float) -> "Experiment":
        """Returns the same at another load."""
        return replace(self, rate=rate)

    def workload(self, seed: int) -> Profile:
        """Reads the workload once, for its ideal hit rates."""
        requests = self.trace.requests(seed, self.rate)
        return profile(requests, self.trace.block_tokens, self.fleet.pools_tokens)


@dataclass(frozen=True, slots=True)
class Run:
    """One run with all it recorded."""

    metrics: RunMetrics
    recorder: Recorder


def run_once(
    experiment: Experiment,
    seed: int,
    progress: Progress | None = None,
    workload: Profile | None = None,
    *,
    asks_oracle: bool = True,
) -> Run:
    """Replays the workload once. Equal experiments and seeds give equal runs."""
    split = experiment.policies.config.split_policy
    recorder = Recorder(experiment.slo, split.prompt_length_threshold)
    mesh = SimMesh(
        experiment.fleet,
        experiment.trace.block_tokens,
        experiment.policies.make(seed),
        recorder.add if progress is None else _reporting(recorder, progress),
        asks_oracle=asks_oracle,
    )
    mesh.run(experiment.trace.requests(seed, experiment.rate))
    figures = measure(mesh, recorder, workload or experiment.workload(seed), seed)
    return Run(figures, recorder)


def run_seeds(
    experiment: Experiment, seeds: Sequence[int], progress: Progress | None = None
) -> list[Run]:
    """Runs an experiment with each seed."""
    return [run_once(experiment, seed, progress) for seed in seeds]


def _reporting(recorder: Recorder, progress: Progress) -> Callable[[Outcome], None]:
    def add(outcome: Outcome) -> None:
        recorder.add(outcome)
        if recorder.everyone.offered % _REPORT_EVERY == 0:
            progress(_REPORT_EVERY)

    return add
