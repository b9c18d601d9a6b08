"""The figures of one fleet each: placements, hits, offloading, interference."""

from rich.console import Console

from sim.bench_compare import SEEDS, Summary, experiment, mean, summary
from sim.costs.hardware import Hardware
from sim.experiment import run_seeds
from sim.fleet import FleetSpec
from sim.planner import CHUNKS, Report
from sim.results.recorder import Slo
from sim.results.table import comparison
from sim.traces.arrivals import Arrivals
from sim.traces.synthetic import InterferenceTrace, MixTrace
from sim.workload import Trace

MIX_SLO = Slo(ttft_s=2.0, tpot_s=0.06)
MIX_PER_S = 37.5
"""The most that 2P+4D serve of the mix with 90 % within `MIX_SLO`."""
STRICT_SLO = Slo(ttft_s=2.0, tpot_s=0.02)
"""With this the policy weighs a stream's delay three times as high."""


def at_recorded_speed(
    console: Console, fleet: FleetSpec, trace: Trace, slo: Slo, report: Report
) -> Summary:
    """Returns the figures of a fleet on a whole trace as it was recorded."""
    report(f"{fleet.label} on the whole trace")
    figures = summary(run_seeds(experiment(fleet, trace, slo), SEEDS))
    console.print(comparison(f"{trace.name}, whole, at 1x", [(fleet.label, figures)]))
    return figures


def mix(console: Console, machine: Hardware, report: Report) -> dict[str, Summary]:
    """Returns the figures of the chapter's mix at several loads, by requests per second."""
    found = {}
    for per_s in (MIX_PER_S / 2, MIX_PER_S, 1.25 * MIX_PER_S):
        report(f"the mix at {per_s:g} requests/s")
        trace = MixTrace(4000, Arrivals(per_s))
        found[f"{per_s:g}/s"] = summary(
            run_seeds(experiment(FleetSpec(machine, 2, 4), trace, MIX_SLO), SEEDS)
        )
    console.print(comparison("the chapter's mix, 2P+4D", list(found.items())))
    return found


def interference(console: Console, machine: Hardware, report: Report) -> dict[str, float | None]:
    """Returns how much higher the chats' TPOT p99 is with long prompts beside them."""
    found = {}
    chunked = FleetSpec(machine, aggregated=4, mixed_budget=CHUNKS[0])
    fleets = (
        ("split", FleetSpec(machine, 2, 2), MIX_SLO),
        ("split_strict_tpot", FleetSpec(machine, 2, 2), STRICT_SLO),
        ("aggregated", FleetSpec(machine, aggregated=4), MIX_SLO),
        ("aggregated_small_chunks", chunked, MIX_SLO),
    )
    for name, fleet, slo in fleets:
        report(f"interference, {name}")
        tails = [
            mean(summary(run_seeds(experiment(fleet, trace, slo), SEEDS)), "short_tpot_p99_s")
            for trace in (InterferenceTrace(has_long=False), InterferenceTrace(has_long=True))
        ]
        without, beside = tails
        found[name] = beside / without - 1 if beside and without else None
        shown = "-" if found[name] is None else f"{100 * (found[name] or 0):.1f} %"
        console.print(f"chats' TPOT p99 beside long prompts, {fleet.label}, {name}: +{shown}")
    return found
