"""What is simulated: traces with classes, fleets whose decode workers are the bottleneck, targets.

Decode is what is short in both, and prompts take long enough to matter: that is where looking at
today's decode load goes wrong. Where prefill is short the policies that look at loads are the same.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from baton.config import Config
from baton.requests import Priority
from sim.costs.hardware import Hardware
from sim.fleet import FleetSpec
from sim.results.recorder import Slo
from sim.traces.find import find
from sim.workload import SimRequest, Trace

POLICIES = ("predictive", "slo_now", "queue_estimate")
LOADS = (0.5, 1.0, 1.5, 2.0, 3.0)
SEEDS = (1, 2, 3)
HIGH_SHARE = 0.2
LOW_SHARE = 0.3

LOW_THRESHOLD_SHARE = 0.25
"""The low threshold as a share of the TTFT target, as in the chapter: 500 ms of 2 s."""

NEVER_FULL = 10**6
"""Prefill workers never decline: a prompt that decode workers computed would blur their load."""


@dataclass(frozen=True, slots=True)
class ClassMix:
    """A trace's first `count` requests with classes drawn at random, the same for each load."""

    trace: Trace
    count: int
    high: float = HIGH_SHARE
    low: float = LOW_SHARE

    @property
    def name(self) -> str:
        """See `Trace`."""
        return self.trace.name

    @property
    def block_tokens(self) -> int:
        """See `Trace`."""
        return self.trace.block_tokens

    def requests(self, seed: int, rate: float = 1.0) -> Iterator[SimRequest]:
        """See `Trace`."""
        rng = random.Random(f"classes {seed}")  # noqa: S311 - not for secrets
        for request in islice(self.trace.requests(seed, rate), self.count):
            yield replace(request, priority=self._priority(rng.random()))

    def _priority(self, draw: float) -> Priority:
        if draw < self.high:
            return Priority.HIGH
        return Priority.LOW if draw < self.high + self.low else Priority.NORMAL


@dataclass(frozen=True, slots=True)
class Scenario:
    """One question to the simulator."""

    name: str
    trace: Trace
    fleet: FleetSpec
    slo: Slo

    def config(self, policy: str) -> Config:
        """Returns the configuration that promises the scenario's targets."""
        qos = Config().qos.model_copy(
            update={
                "policy": policy,
                "ttft_slo_ms": self.slo.ttft_s * 1e3,
                "tpot_slo_ms": self.slo.tpot_s * 1e3,
                "low_priority_threshold_ms": LOW_THRESHOLD_SHARE * self.slo.ttft_s * 1e3,
            }
        )
        split = Config().split_policy.model_copy(update={"prefill_queue_max": NEVER_FULL})
        return Config(qos=qos, split_policy=split)


def scenarios(machine: Hardware, count: int) -> list[Scenario]:
    """Returns the two scenarios, with at most `count` requests of each trace."""
    return [
        Scenario(
            "conversation",
            ClassMix(find("conversation").trace, count),
            FleetSpec(machine, 3, 4),
            Slo(ttft_s=30.0, tpot_s=0.1),
        ),
        Scenario(
            "azure-code",
            ClassMix(find("azure-code").trace, count),
            FleetSpec(machine, 2, 1),
            Slo(ttft_s=5.0, tpot_s=0.045),
        ),
    ]


def swinging(scenario: Scenario) -> Scenario:
    """Returns the scenario with one class only, so that nothing but the policy makes swings."""
    assert isinstance(scenario.trace, ClassMix)
    return replace(scenario, trace=replace(scenario.trace, high=0.0, low=0.0))
