"""`make bench-sim`: how fast the simulator is and what it says, as a table and one JSON line."""

import json
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table

from baton.config import Config
from services.router.policy import (
    Decision,
    DecodeView,
    PrefillView,
    RouteRequest,
    StandingPolicy,
)
from sim.costs.hardware import Hardware
from sim.costs.presets import H100_COPY, UnknownHardwareError, hardware
from sim.experiment import Experiment, Run, run_seeds
from sim.fleet import FleetSpec
from sim.mesh import SimMesh
from sim.results.recorder import Slo
from sim.results.summary import Estimate, summarise
from sim.results.table import comparison, width
from sim.setup import PolicySpec
from sim.traces.arrivals import Arrivals
from sim.traces.find import find
from sim.traces.synthetic import InterferenceTrace, MixTrace
from sim.workload import Trace

SEEDS = (1, 2, 3)
LOADS = (0.5, 1.0, 1.5, 2.0)
FLEET_SIZES = (16, 64, 256, 1024)
# Decode steps of this hardware take 30 ms at least: prefill chunks between them break this limit.
CONVERSATION_SLO = Slo(ttft_s=30.0, tpot_s=0.06)
MIX_SLO = Slo(ttft_s=2.0, tpot_s=0.06)


@dataclass(frozen=True, slots=True)
class Speed:
    """One replay of the conversation trace. Seconds are of one core."""

    workers: int
    seconds: float
    routing_s: float
    events: int


def main() -> None:
    """Prints the tables and, last, the JSON line; null is what cannot be measured yet."""
    console = Console()
    found = find("conversation")
    if found.note:
        console.print(f"note: {found.note}")
    machine = _hardware(console)
    console.print(machine.describe(), soft_wrap=True)
    speeds = [_speed(machine, found.trace, workers) for workers in FLEET_SIZES]
    _show_speeds(console, found.trace, speeds)
    seconds = {speed.workers: round(speed.seconds, 2) for speed in speeds}
    line: dict[str, float | None] = {
        "seconds_conversation_16w": seconds[16],
        "seconds_conversation_1024w": seconds[1024],
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        **_conversation(console, machine, found.trace),
        "offload_share": _offload(console, machine),
        "interference": _interference(console, machine),
        "parity_p50_error": None,
        "parity_p99_error": None,
    }
    print(json.dumps(line))


def _hardware(console: Console) -> Hardware:
    try:
        return hardware("h100")
    except UnknownHardwareError as error:
        console.print(f"note: {error}", soft_wrap=True)
        return H100_COPY


class _Timed:
    """A routing policy, and how long it took to decide. The simulation knows no such clock."""

    def __init__(self, policy: StandingPolicy) -> None:
        self.prefill_keys, self.decode_keys = policy.prefill_keys, policy.decode_keys
        self.name = policy.name
        self.seconds = 0.0
        self._policy = policy

    def choose(
        self,
        request: RouteRequest,
        prefill: Sequence[PrefillView],
        decode: Sequence[DecodeView],
    ) -> Decision:
        """See RoutingPolicy."""
        started_s = time.process_time()
        decision = self._policy.choose(request, prefill, decode)
        self.seconds += time.process_time() - started_s
        return decision


def _speed(machine: Hardware, trace: Trace, workers: int) -> Speed:
    spec = FleetSpec(machine, workers // 4, workers - workers // 4)
    policies = PolicySpec(admits_all=True).make(1)
    assert isinstance(policies.routing, StandingPolicy)
    routing = _Timed(policies.routing)
    policies = replace(policies, routing=routing)
    mesh = SimMesh(spec, trace.block_tokens, policies, lambda outcome: None, asks_oracle=False)
    started_s = time.process_time()
    mesh.run(trace.requests(1))
    seconds = time.process_time() - started_s
    return Speed(workers, seconds, routing.seconds, mesh.loop.processed)


def _show_speeds(console: Console, trace: Trace, speeds: Sequence[Speed]) -> None:
    table = Table(title=f"speed on {trace.name}", title_justify="left", box=None)
    for heading in ("workers", "seconds", "of them routing", "events", "us per event without"):
        table.add_column(heading, justify="right")
    for speed in speeds:
        each_us = 1e6 * (speed.seconds - speed.routing_s) / max(speed.events, 1)
        table.add_row(
            str(speed.workers),
            f"{speed.seconds:.1f}",
            f"{speed.routing_s:.1f}",
            str(speed.events),
            f"{each_us:.1f}",
        )
    console.print(table)


def _conversation(console: Console, machine: Hardware, trace: Trace) -> dict[str, float | None]:
    """Compares 16 workers split and aggregated over loads; figures of the default at load 1."""
    policies = PolicySpec(admits_all=True)
    fleets = (FleetSpec(machine, 4, 12), FleetSpec(machine, aggregated=16))
    peaks = [0.0, 0.0]
    at_one: dict[str, Estimate | None] = {}
    for load in LOADS:
        columns = []
        for number, fleet in enumerate(fleets):
            experiment = Experiment(fleet, trace, policies, CONVERSATION_SLO, load)
            summary = _summary(run_seeds(experiment, SEEDS))
            columns.append((experiment.label.replace(" ", "\n"), summary))
            peaks[number] = max(peaks[number], _mean(summary, "goodput_per_s") or 0.0)
        if load == 1.0:
            at_one = columns[0][1]
        console.width = max(console.width, width(len(columns)))
        console.print(comparison(f"{trace.name} at {load:g}x", columns))
    return {
        "goodput_ratio_tpot_bound": round(peaks[0] / peaks[1], 3) if peaks[1] else None,
        "oracle_agreement": _mean(at_one, "oracle_agreement"),
        "hit_share_of_ideal": _mean(at_one, "hit_share_of_ideal"),
    }


def _offload(console: Console, machine: Hardware) -> float | None:
    trace = MixTrace(4000, Arrivals(40.0))
    experiment = Experiment(FleetSpec(machine, 2, 4), trace, PolicySpec(config=Config()), MIX_SLO)
    summary = _summary(run_seeds(experiment, SEEDS))
    console.print(comparison(trace.name, [(experiment.label, summary)]))
    return _mean(summary, "offload_share")


def _interference(console: Console, machine: Hardware) -> float | None:
    """Returns how much higher the chats' TPOT p99 is with heavy prefill in the same fleet."""
    policies, quotients = PolicySpec(admits_all=True), []
    for fleet in (FleetSpec(machine, 2, 2), FleetSpec(machine, aggregated=4)):
        tails = []
        for has_long in (False, True):
            trace = InterferenceTrace(has_long)
            experiment = Experiment(fleet, trace, policies, MIX_SLO)
            tails.append(_mean(_summary(run_seeds(experiment, SEEDS)), "short_tpot_p99_s"))
        without, beside = tails
        quotients.append(beside / without - 1 if beside and without else None)
        shown = "-" if quotients[-1] is None else f"{100 * quotients[-1]:.1f} %"
        console.print(f"chats' TPOT p99 beside long prompts, {fleet.label}: +{shown}")
    return None if quotients[0] is None else round(quotients[0], 4)


def _summary(runs: Sequence[Run]) -> dict[str, Estimate | None]:
    return summarise([run.metrics for run in runs])


def _mean(summary: dict[str, Estimate | None], name: str) -> float | None:
    value = summary.get(name)
    return None if value is None else round(value.mean, 4)


if __name__ == "__main__":
    main()
