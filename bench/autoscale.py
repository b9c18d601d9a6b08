"""`make bench-autoscale`: what sizing by forecast saves, and a load step on the mesh.

Simulated, on azure/code and on a day-like sine with spikes: see autoscale_sim.py. On the mesh, with
simulated and with embedded engines: a load step by local processes, and what a change of roles
takes beside a cold start.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from bench.autoscale_mesh import LoadStep, Moves, StepResult, run_moves, run_step
from bench.autoscale_sim import DAY, LIMITS, SEEDS, TARGET, Bench, Scored
from bench.report import emit, note
from sim.traces.find import find
from sim.workload import Trace

PROCESSES = 2
MESH_SETTINGS = {
    "BATON_QOS__ENABLE_EARLY_REJECTION": "false",
    "BATON_QOS__TTFT_SLO_MS": "1000",
}
ENGINES = {
    "simulated": {
        **MESH_SETTINGS,
        "BATON_ENGINE__KIND": "simulated",
        "BATON_QOS__TPOT_SLO_MS": "9",
    },
    "embedded": {**MESH_SETTINGS, "BATON_QOS__TPOT_SLO_MS": "30"},
}


def load_steps(seconds: float) -> dict[str, StepResult]:
    """Runs the load step on the mesh with simulated and with embedded engines."""
    steps = {
        "simulated": LoadStep(2.0, phase_s=seconds, prompt_tokens=1200, output_tokens=64),
        "embedded": LoadStep(0.5, phase_s=seconds, prompt_tokens=800, output_tokens=48),
    }
    results = {}
    for name, step in steps.items():
        with tempfile.TemporaryDirectory() as directory:
            results[name] = asyncio.run(run_step(step, ENGINES[name], Path(directory)))
        it = results[name]
        note(
            f"  mesh, {name} engines: {it.sent} sent, {it.failed} failed {dict(it.errors)}, "
            f"1+1 -> {it.peak[0]}+{it.peak[1]} -> {it.last[0]}+{it.last[1]}"
        )
    return results


def moves() -> dict[str, Moves]:
    """Returns what a change of roles takes, idle, with both engines."""
    results = {}
    for name, settings in ENGINES.items():
        with tempfile.TemporaryDirectory() as directory:
            results[name] = asyncio.run(run_moves(settings, Path(directory)))
        it = results[name]
        note(
            f"  mesh, {name} engines: a role changes in {it.to_prefill_s:.2f} and back in "
            f"{it.to_decode_s:.2f} s, a cold start takes {it.cold_start_s:.2f} s"
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
    traces: dict[str, Trace] = {"azure_code": code.trace, "day": DAY}
    with ProcessPoolExecutor(PROCESSES) as executor:
        scores = {
            name: Bench(trace, given.start, seeds, executor).compare()
            for name, trace in traces.items()
        }
    steps = {} if given.no_mesh else load_steps(given.phase)
    changes = {} if given.no_mesh else moves()
    emit(
        "bench-autoscale",
        figures(scores["azure_code"], steps),
        details(scores, steps, changes, given.start),
        given.record,
    )


def figures(
    scores: Mapping[str, Scored], steps: Mapping[str, StepResult]
) -> dict[str, float | None]:
    """Returns the figures of azure/code and the mesh by name."""
    values: dict[str, float | None] = {}
    for what in ("attainment", "worker_hours"):
        for name, scored in scores.items():
            values[f"{what}_{name}"] = getattr(scored.score, what)
    values["direction_changes_per_hour"] = scores["slo"].score.direction_changes_per_hour
    values["failed_requests_mesh"] = sum(it.failed for it in steps.values()) if steps else None
    return values


def details(
    scores: Mapping[str, Mapping[str, Scored]],
    steps: Mapping[str, StepResult],
    changes: Mapping[str, Moves],
    start_s: float,
) -> dict[str, Any]:
    """Returns what the figures are of."""
    return {
        "target": TARGET,
        "limits_s": [LIMITS.ttft_s, LIMITS.tpot_s],
        "cold_start_s": start_s,
        "simulated": {
            trace: {name: {"which": it.name, **it.score._asdict()} for name, it in each.items()}
            for trace, each in scores.items()
        },
        "mesh": {
            name: {"sent": it.sent, "failed": it.failed, "peak": it.peak, "last": it.last}
            for name, it in steps.items()
        },
        "role_change": {name: it._asdict() for name, it in changes.items()},
    }


if __name__ == "__main__":
    main()
