"""What is simulated: parts of traces with classes, fleets, targets.

The conversation fleet has about as much of both pools as its trace needs, so that either can be
short: that is where looking at today's decode load goes wrong. For azure-code there are three, with
one decode worker each: with few prefill workers only prefill is short and the policies that look at
loads are the same; "balanced" has as many as give the most capacity per worker (bench.qos.splits
finds it); "decode-bound" has the fewest beyond which more of them add nothing.

Policies were tuned on the first requests of each trace. The scenarios named "held out" replay a
later part, which nobody looked at before.
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
from sim.workload import SimRequest, Trace, TraceOf

POLICIES = ("predictive", "slo_now", "queue_estimate")
LOADS = (0.5, 1.0, 1.5, 2.0, 3.0)
SEEDS = (1, 2, 3)
HIGH_SHARE = 0.2
LOW_SHARE = 0.3

LOW_THRESHOLD_SHARE = 0.25
"""The low threshold as a share of the TTFT target, as in the chapter: 500 ms of 2 s."""

CONVERSATION_HELD_OUT_FROM = 6000
AZURE_HELD_OUT_FROM = 4400
"""The parts that policies were not tuned on begin here, at about half of each trace."""

AZURE_PREFILL = {"": 2, "-balanced": 3, "-decode-bound": 6}
"""Prefill workers per decode worker of the azure-code fleets, by the end of the scenario's name."""

HELD_OUT = "-held-out"

SWINGS_LONGER = 3

NEVER_FULL = 10**6
"""Prefill workers never decline: a prompt that decode workers computed would blur their load."""


@dataclass(frozen=True, slots=True)
class ClassMix(TraceOf):
    """Some requests of a trace, from the `skip`-th on, with classes drawn at random.

    Classes do not depend on the load, nor on what a request is like.
    """

    count: int
    skip: int = 0
    high: float = HIGH_SHARE
    low: float = LOW_SHARE

    def requests(self, seed: int, rate: float = 1.0) -> Iterator[SimRequest]:
        """See `Trace`."""
        rng = random.Random(f"classes {seed}")  # noqa: S311 - not for secrets
        begins_s: float | None = None
        for request in islice(self.trace.requests(seed, rate), self.skip, self.skip + self.count):
            begins_s = request.arrival_s if begins_s is None else begins_s
            arrival_s = request.arrival_s - begins_s
            priority = self._priority(rng.random())
            yield replace(request, arrival_s=arrival_s, priority=priority)

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
    """Returns the scenarios, with `count` requests of each trace; the first is the main one."""
    return [
        *(_conversation(machine, count, skip) for skip in (0, CONVERSATION_HELD_OUT_FROM)),
        *(
            azure_code(machine, count, prefill, fleet, skip)
            for fleet, prefill in AZURE_PREFILL.items()
            for skip in (0, AZURE_HELD_OUT_FROM)
        ),
    ]


def _conversation(machine: Hardware, count: int, skip: int) -> Scenario:
    name = f"conversation{HELD_OUT if skip else ''}"
    trace = ClassMix(find("conversation").trace, count, skip)
    return Scenario(name, trace, FleetSpec(machine, 3, 2), Slo(ttft_s=30.0, tpot_s=0.05))


def azure_code(
    machine: Hardware, count: int, prefill: int, fleet: str = "", skip: int = 0
) -> Scenario:
    """Returns a scenario with so many prefill workers and one that decodes."""
    name = f"azure-code{fleet}{HELD_OUT if skip else ''}"
    trace = ClassMix(find("azure-code").trace, 2 * count, skip)
    return Scenario(name, trace, FleetSpec(machine, prefill, 1), Slo(ttft_s=5.0, tpot_s=0.045))


def swinging(scenario: Scenario) -> Scenario:
    """Returns the scenario with one class only, so that nothing but the policy makes swings.

    It is longer too: periods are of the order of a minute.
    """
    assert isinstance(scenario.trace, ClassMix)
    count = SWINGS_LONGER * scenario.trace.count
    return replace(scenario, trace=replace(scenario.trace, count=count, high=0.0, low=0.0))
