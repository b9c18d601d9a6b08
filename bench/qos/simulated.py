"""One simulated run: what became of the requests, and how the loads moved."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from baton.requests import Priority
from bench.qos.scenarios import Scenario
from services.decode.policy import ThresholdSplitPolicy
from sim.admission import SimDesk
from sim.mesh import SimMesh
from sim.observe import Observation, Role
from sim.outcome import Ending, Outcome
from sim.policies import Policies
from sim.results.recorder import Slo
from sim.setup import PolicySpec

OPEN = "open"
"""Stands for no admission at all."""

SAMPLE_S = 1.0
"""Loads are looked at so often."""

TRIMMED_SHARE = 0.1
"""Share of a run at each end that says nothing about swings: filling up, and running dry."""


@dataclass(frozen=True, slots=True)
class Loads:
    """Both loads over time, 1 at the target: the wait that was promised, and the time per token."""

    prefill: Sequence[float]
    decode: Sequence[float]


@dataclass(slots=True)
class ClassFigures:
    """What became of one class."""

    offered: int = 0
    rejected: int = 0
    met: int = 0
    ttft_s: list[float] = field(default_factory=list)

    def add(self, outcome: Outcome, slo: Slo) -> None:
        """Takes one outcome in."""
        self.offered += 1
        self.rejected += outcome.ending is Ending.REJECTED
        self.met += outcome.meets(slo.ttft_s, slo.tpot_s)
        if outcome.ttft_s is not None:
            self.ttft_s.append(outcome.ttft_s)

    @property
    def attainment(self) -> float | None:
        """Share of those offered that met both targets."""
        return self.met / self.offered if self.offered else None

    @property
    def median_ttft_s(self) -> float | None:
        """The median of those that were served."""
        return statistics.median(self.ttft_s) if self.ttft_s else None


@dataclass(frozen=True, slots=True)
class SimRun:
    """The figures of one run.

    Wasted tokens were computed for requests that did not meet their targets, or once more.
    """

    offered: int
    rejected: int
    met: int
    wasted_tokens: int
    computed_tokens: int
    classes: dict[Priority, ClassFigures]
    reasons: dict[str, int]
    loads: Loads

    @property
    def rejected_share(self) -> float:
        """Share of all requests that was turned away."""
        return self.rejected / self.offered

    @property
    def goodput(self) -> float:
        """Share of all requests that met both targets."""
        return self.met / self.offered

    @property
    def wasted_share(self) -> float:
        """Wasted share of the prompt tokens that were computed."""
        return self.wasted_tokens / max(1, self.computed_tokens)


def simulate(scenario: Scenario, policy: str, load: float, seed: int, *, strict: bool) -> SimRun:
    """Replays the scenario's trace at `load` times its own rate; `strict` as in SimMesh."""
    watch = _Watch(scenario.slo)
    mesh = SimMesh(
        scenario.fleet,
        scenario.trace.block_tokens,
        _policies(scenario, policy, seed),
        watch.take,
        asks_oracle=False,
        strict=scenario.slo if strict else None,
    )
    watch.mesh = mesh
    mesh.every(SAMPLE_S, watch.look)
    mesh.run(scenario.trace.requests(seed, load))
    return watch.summed()


def _policies(scenario: Scenario, policy: str, seed: int) -> Policies:
    """Returns what decides. Long prompts are computed remotely, by the chapter's threshold: what is
    compared is admission alone, and local prefills would blur the decode load."""
    config = scenario.config("predictive" if policy == OPEN else policy)
    policies = PolicySpec(config=config, admits_all=policy == OPEN).make(seed)
    split = config.split_policy
    threshold = ThresholdSplitPolicy(split.prompt_length_threshold, split.prefill_queue_max)
    return replace(policies, split=threshold)


class _Watch:
    def __init__(self, slo: Slo) -> None:
        self.mesh: SimMesh | None = None
        self._slo = slo
        self._everyone = ClassFigures()
        self._classes = {priority: ClassFigures() for priority in Priority}
        self._reasons: Counter[str] = Counter()
        self._computed_tokens = 0
        self._wasted_tokens = 0
        self._prefill: list[float] = []
        self._decode: list[float] = []

    def take(self, outcome: Outcome) -> None:
        self._everyone.add(outcome, self._slo)
        self._classes[outcome.request.priority].add(outcome, self._slo)
        if outcome.ending is Ending.REJECTED:
            self._reasons[outcome.reason] += 1
        self._computed_tokens += outcome.computed_tokens
        if outcome.meets(self._slo.ttft_s, self._slo.tpot_s):
            again = outcome.computed_tokens - outcome.request.prompt_tokens
            self._wasted_tokens += max(0, again)
        else:
            self._wasted_tokens += outcome.computed_tokens

    def look(self, seen: Observation) -> None:
        assert self.mesh is not None
        decode = seen.of(Role.DECODE)
        costs = self.mesh.spec.hardware.costs
        steps_s = [costs.decode_s(it.decoding, it.resident_tokens) for it in decode if it.decoding]
        self._decode.append(max(steps_s, default=0.0) / self._slo.tpot_s)
        desk = self.mesh.desk
        wait_s = desk.door.load(seen.now_s).wait_s if isinstance(desk, SimDesk) else 0.0
        self._prefill.append(wait_s / self._slo.ttft_s)

    def summed(self) -> SimRun:
        return SimRun(
            offered=self._everyone.offered,
            rejected=self._everyone.rejected,
            met=self._everyone.met,
            wasted_tokens=self._wasted_tokens,
            computed_tokens=self._computed_tokens,
            classes=self._classes,
            reasons=dict(self._reasons),
            loads=Loads(self._prefill, self._decode),
        )


def capacity(scenario: Scenario, seed: int, share: float = 0.9, steps: int = 6) -> float:
    """Returns the load up to which the mesh without admission serves `share` within the targets."""
    low, high = 0.0, 4.0
    for _ in range(steps):
        middle = (low + high) / 2
        if simulate(scenario, OPEN, middle, seed, strict=False).goodput >= share:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def swing(load: Sequence[float]) -> float:
    """Returns how far a load swings: the amplitude of its periodic part, in units of the load.

    A load that swings is like itself a period later and unlike itself half a period later: its
    autocorrelation dips below 0 as deep as the share of its variance that swings. The amplitude is
    that of the sine with this part of the variance.
    """
    trimmed = int(len(load) * TRIMMED_SHARE)
    middle = load[trimmed : len(load) - trimmed]
    if len(middle) < 8:
        return 0.0
    variance = statistics.pvariance(middle)
    return math.sqrt(2 * variance * max(0.0, -min(autocorrelation(middle))))


def autocorrelation(values: Sequence[float]) -> list[float]:
    """Returns the autocorrelation at lags of 0 to a quarter of the length."""
    mean = statistics.fmean(values)
    centred = [value - mean for value in values]
    total = sum(value * value for value in centred)
    if not total:
        return [0.0]
    count = len(centred)
    return [
        sum(centred[i] * centred[i + lag] for i in range(count - lag)) / total
        for lag in range(count // 4)
    ]


def correlation_at_lag(loads: Loads, lag: int) -> float:
    """Returns how the decode load goes with the prefill load of `lag` samples before."""
    pairs = list(zip(loads.prefill, loads.decode[lag:], strict=False))
    prefill, decode = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    if len(set(prefill)) < 2 or len(set(decode)) < 2:
        return 0.0
    return statistics.correlation(prefill, decode)
