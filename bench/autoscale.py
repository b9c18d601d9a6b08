"""`make bench-autoscale`: what sizing by forecast saves, simulated, and a load step on the mesh.

Simulated, on azure/code and on a day-like sine with spikes: the `slo` policy, the chapter's
`thresholds` at several settings, and every fixed fleet of a grid. The best fixed fleet and the best
thresholds are the cheapest that meet the target, chosen in hindsight, or the nearest to it.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.autoscale_mesh import LoadStep, StepResult, run_step
from bench.report import emit, note, steps
from services.autoscaler import sizing
from services.autoscaler.policy import ScalingPolicy, ThresholdPolicy, Thresholds
from services.autoscaler.slo_policy import SloPolicy, SloSettings
from services.autoscaler.state import Bounds
from sim.autoscale import Delays
from sim.autoscale_run import ScalingTask, run_scaled
from sim.costs.presets import H100_COPY, UnknownHardwareError, hardware
from sim.fleet import FleetSpec
from sim.results.recorder import Slo
from sim.traces.day import DayTrace
from sim.traces.find import find
from sim.workload import Trace

TARGET = 0.97
SEEDS = (1, 2, 3)
LIMITS = Slo(ttft_s=2.0, tpot_s=0.2)
BOUNDS = Bounds(1, 12)
FIXED = ((1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (4, 1), (4, 2), (5, 1), (5, 2), (6, 2))
THRESHOLDS = ((8.0, 2.0, 0.8, 0.4), (2.0, 0.0, 0.5, 0.2), (1.0, 0.0, 0.3, 0.1))
MESH_SETTINGS = {
    "BATON_QOS__ENABLE_EARLY_REJECTION": "false",
    "BATON_QOS__TTFT_SLO_MS": "1000",
}


@dataclass(frozen=True, slots=True)
class Scored:
    """Means over the seeds."""

    name: str
    attainment: float
    worker_hours: float
    direction_changes_per_hour: float

    @property
    def rank(self) -> tuple[bool, float]:
        """Smaller is better: what meets the target by its hours, the rest by what it misses."""
        misses = self.attainment < TARGET
        return misses, TARGET - self.attainment if misses else self.worker_hours


def slo_policy(start_s: float) -> ScalingPolicy:
    """Returns the default policy as the service makes it, without flips."""
    limits = sizing.Slo(LIMITS.ttft_s, LIMITS.tpot_s)
    return SloPolicy(SloSettings(limits, BOUNDS, BOUNDS, 24, start_s=start_s, flips=False))


def threshold_policy(queue_up: float, queue_down: float, up: float, down: float) -> ScalingPolicy:
    """Returns the chapter's policy with these thresholds for prefill and its own for decode."""
    prefill = Thresholds(BOUNDS, queue_up, queue_down, up, down)
    return ThresholdPolicy(prefill, Thresholds(BOUNDS, 16, 4, 0.75, 0.3), cooldown_up_s=5.0)


def score(
    name: str, task: ScalingTask, make: Callable[[], ScalingPolicy] | None, seeds: Sequence[int]
) -> Scored:
    """Runs a policy, or a fixed fleet without one, with each seed."""
    runs = [run_scaled(task, seed, make) for seed in seeds]
    scored = Scored(
        name,
        sum(run.attainment for run in runs) / len(runs),
        sum(run.worker_hours for run in runs) / len(runs),
        sum(run.direction_changes_per_hour for run in runs) / len(runs),
    )
    note(
        f"  {task.trace.name}: {name}: {100 * scored.attainment:.1f} % within limits, "
        f"{scored.worker_hours:.2f} worker-hours, "
        f"{scored.direction_changes_per_hour:.0f} changes of direction an hour"
    )
    return scored


def compare(trace: Trace, start_s: float, seeds: Sequence[int]) -> dict[str, Scored]:
    """Returns the slo policy, the best thresholds and the best fixed fleet on a trace."""
    try:
        machine = hardware("h100")
    except UnknownHardwareError:
        machine = H100_COPY
    delays = Delays(start_s=start_s)

    def task(prefill: int, decode: int) -> ScalingTask:
        return ScalingTask(trace, FleetSpec(machine, prefill, decode), LIMITS, delays=delays)

    fixed = min(
        (score(f"fixed {p}+{d}", task(p, d), None, seeds[:1]) for p, d in steps(FIXED, trace.name)),
        key=lambda it: it.rank,
    )
    chosen = next(size for size in FIXED if fixed.name == f"fixed {size[0]}+{size[1]}")
    settings = min(
        THRESHOLDS,
        key=lambda it: (
            score(f"thresholds {it}", task(3, 1), lambda: threshold_policy(*it), seeds[:1]).rank
        ),
    )
    return {
        "slo": score("slo", task(3, 1), lambda: slo_policy(start_s), seeds),
        "thresholds": score(
            f"thresholds {settings}", task(3, 1), lambda: threshold_policy(*settings), seeds
        ),
        "best_fixed": score(fixed.name, task(*chosen), None, seeds),
    }


def load_steps(seconds: float) -> dict[str, StepResult]:
    """Runs the load step on the mesh with simulated and with embedded engines."""
    steps = {
        "simulated": LoadStep(
            2.0,
            phase_s=seconds,
            prompt_tokens=1200,
            output_tokens=64,
            settings={
                **MESH_SETTINGS,
                "BATON_ENGINE__KIND": "simulated",
                "BATON_QOS__TPOT_SLO_MS": "9",
            },
        ),
        "embedded": LoadStep(
            0.5,
            phase_s=seconds,
            prompt_tokens=800,
            output_tokens=48,
            settings={**MESH_SETTINGS, "BATON_QOS__TPOT_SLO_MS": "30"},
        ),
    }
    results = {}
    for name, step in steps.items():
        with tempfile.TemporaryDirectory() as directory:
            results[name] = asyncio.run(run_step(step, Path(directory)))
        it = results[name]
        note(
            f"  mesh, {name} engines: {it.sent} sent, {it.failed} failed {dict(it.errors)}, "
            f"1+1 -> {it.peak[0]}+{it.peak[1]} -> {it.last[0]}+{it.last[1]}"
        )
    return results


def main() -> None:
    """Measures, prints, and with --record keeps the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--start", type=float, default=15.0, help="Seconds of a cold start.")
    parser.add_argument("--phase", type=float, default=20.0, help="Seconds of a mesh phase.")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--no-mesh", action="store_true")
    given = parser.parse_args()
    seeds = SEEDS[: given.seeds]
    code = find("azure-code")
    if code.note:
        note(f"note: {code.note}")
    traces: dict[str, Trace] = {"azure_code": code.trace, "day": DayTrace()}
    scores = {name: compare(trace, given.start, seeds) for name, trace in traces.items()}
    steps = {} if given.no_mesh else load_steps(given.phase)
    emit(
        "bench-autoscale",
        figures(scores["azure_code"], steps),
        details(scores, steps, given.start),
        given.record,
    )


def figures(scores: dict[str, Scored], steps: dict[str, StepResult]) -> dict[str, float | None]:
    """Returns the figures of azure/code and the mesh by name."""
    values: dict[str, float | None] = {}
    for what in ("attainment", "worker_hours"):
        for name, scored in scores.items():
            values[f"{what}_{name}"] = getattr(scored, what)
    values["direction_changes_per_hour"] = scores["slo"].direction_changes_per_hour
    values["failed_requests_mesh"] = sum(it.failed for it in steps.values()) if steps else None
    return values


def details(
    scores: dict[str, dict[str, Scored]], steps: dict[str, StepResult], start_s: float
) -> dict[str, Any]:
    """Returns what the figures are of."""
    return {
        "target": TARGET,
        "limits_s": [LIMITS.ttft_s, LIMITS.tpot_s],
        "cold_start_s": start_s,
        "simulated": {
            trace: {
                name: [it.name, it.attainment, it.worker_hours, it.direction_changes_per_hour]
                for name, it in each.items()
            }
            for trace, each in scores.items()
        },
        "mesh": {
            name: {"sent": it.sent, "failed": it.failed, "peak": it.peak, "last": it.last}
            for name, it in steps.items()
        },
    }


if __name__ == "__main__":
    main()
