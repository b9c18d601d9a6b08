"""`make bench-qos`: all admission policies under load, in the simulator.

In the simulator every policy gets the same traces, classes and fleets; whoever was accepted but
would not be served within its targets is turned away after its prompt, as Mooncake's decode workers
do, so that rejections can be compared (see docs/qos.md).

Scenarios may be run one at a time: what is recorded of the others stays, each with its commit.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from bench.qos.comparison import Comparison, compare, figures, line, show
from bench.qos.plots import oscillation
from bench.qos.scenarios import LOADS, SEEDS, scenarios
from bench.qos.simulated import correlation_at_lag, swing
from bench.report import RESULTS, commit, emit, note
from sim.costs.hardware import Hardware
from sim.costs.presets import H100_COPY, UnknownHardwareError, hardware
from sim.results.summary import Estimate

PLOTTED_S = 700.0


def main() -> None:
    """Runs the command line."""
    typer.run(_command)


def _command(
    requests: Annotated[int, typer.Option(help="Requests of each trace.")] = 1500,
    processes: Annotated[int, typer.Option(help="Runs at a time.")] = 2,
    seeds: Annotated[int, typer.Option(help="Seeds.")] = len(SEEDS),
    plot: Annotated[Path | None, typer.Option(help="Folder for the picture.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="A scenario's name; all without.")] = None,
    record: Annotated[bool, typer.Option(help="Keep the result in bench/results.")] = False,
) -> None:
    """Compare the admission policies."""
    console = Console()
    every = scenarios(_machine(), requests)
    details = _recorded()
    for scenario in every:
        if only and scenario.name not in only:
            continue
        found = compare(scenario, note, LOADS, tuple(range(1, seeds + 1)), processes)
        show(found, console)
        details[scenario.name] = _details(found)
        if plot is not None:
            _draw(found, plot)
    emit("bench-qos", _figures_of(details.get(every[0].name)), details, record)


def _recorded() -> dict[str, Any]:
    """Returns what is recorded of each scenario."""
    path = RESULTS / "bench-qos.json"
    if not path.is_file():
        return {}
    kept = json.loads(path.read_text())
    return {
        name: {"commit": kept["commit"], **scenario} for name, scenario in kept["details"].items()
    }


def _figures_of(main_scenario: dict[str, Any] | None) -> dict[str, float | None]:
    """Returns the figures of the JSON line, which are the main scenario's."""
    if main_scenario is None:
        return {}
    figures: dict[str, float | None] = main_scenario["figures"]
    return figures


def _machine() -> Hardware:
    try:
        return hardware("h100")
    except UnknownHardwareError as error:
        note(str(error))
        return H100_COPY


def _details(found: Comparison) -> dict[str, Any]:
    return {
        "commit": commit(),
        "fleet": found.scenario.fleet.label,
        "capacity": found.capacity,
        "figures": figures(found),
        "rejected": {
            f"{policy} {load:g}x": _value(found.mean(policy, load, lambda run: run.rejected_share))
            for policy, load in found.runs
        },
        "wasted_share": {
            f"{policy} {load:g}x": _value(found.mean(policy, load, lambda run: run.wasted_share))
            for policy, load in found.runs
        },
        "runs": {
            f"{policy} {load:g}x": [line(run) for run in runs]
            for (policy, load), runs in found.runs.items()
        },
        "swings": {
            policy: [
                {
                    "prefill": swing(run.loads.prefill),
                    "decode": swing(run.loads.decode),
                    "rejected": run.rejected_share,
                    "goodput": run.goodput,
                    "correlation": correlation_at_lag(run.loads, 0),
                }
                for run in runs
            ]
            for policy, runs in found.swings.items()
        },
    }


def _value(value: Estimate) -> list[float | None]:
    return [value.mean, value.half_width]


def _draw(found: Comparison, folder: Path) -> None:
    loads = {policy: runs[0].loads for policy, runs in found.swings.items()}
    name = found.scenario.name
    title = f"{name} at twice capacity, one class, {found.scenario.fleet.label}"
    oscillation(folder / f"qos-oscillation-{name}.png", title, loads, PLOTTED_S)


if __name__ == "__main__":
    main()
