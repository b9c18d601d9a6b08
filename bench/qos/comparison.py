"""The policies side by side at every load: a table, and the figures that the benchmark is about."""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from baton.requests import Priority
from bench.qos.scenarios import LOADS, POLICIES, SEEDS, Scenario, swinging
from bench.qos.simulated import SimRun, capacity, simulate, swing
from bench.report import steps
from sim.results.summary import Estimate, estimate

OVERLOAD = 2.0
NORMAL_LOAD = 0.5


@dataclass(slots=True)
class Comparison:
    """All runs of one scenario, by policy and load; `capacity` is in multiples of the trace."""

    scenario: Scenario
    capacity: float
    runs: dict[tuple[str, float], list[SimRun]] = field(default_factory=dict)
    swings: dict[str, list[SimRun]] = field(default_factory=dict)

    def mean(self, policy: str, load: float, value: Callable[[SimRun], float | None]) -> Estimate:
        """Returns a figure over the seeds, with its interval."""
        found = [value(run) for run in self.runs[policy, load]]
        known = [each for each in found if each is not None]
        return estimate(known) if known else Estimate(float("nan"), None)


def compare(
    scenario: Scenario,
    note: Callable[[str], None],
    loads: Sequence[float] = LOADS,
    seeds: Sequence[int] = SEEDS,
    processes: int = 1,
) -> Comparison:
    """Runs all policies at all loads."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context) as pool:
        found = Comparison(scenario, capacity(scenario, seeds[0]))
        note(f"{scenario.name}: capacity is {found.capacity:.2f} times the trace")
        waiting = {
            (policy, load): [
                pool.submit(simulate, scenario, policy, load * found.capacity, seed, strict=True)
                for seed in seeds
            ]
            for load in loads
            for policy in POLICIES
        }
        rate, single = OVERLOAD * found.capacity, swinging(scenario)
        swings = {
            policy: [
                pool.submit(simulate, single, policy, rate, seed, strict=False) for seed in seeds
            ]
            for policy in POLICIES[:2]
        }
        for policy, load in steps(list(waiting), scenario.name):
            runs = waiting[policy, load]
            found.runs[policy, load] = [run.result() for run in runs]
            note(f"{scenario.name} {load:g}x {policy}: {line(found.runs[policy, load][0])}")
        for policy, runs in swings.items():
            found.swings[policy] = [run.result() for run in runs]
    return found


def line(run: SimRun) -> str:
    """Returns one run in a line."""
    classes = "  ".join(
        f"{priority.name.lower()} {_share(each.attainment)} {each.median_ttft_s or 0:.2f} s"
        for priority, each in run.classes.items()
    )
    return (
        f"rejected {run.rejected_share:.3f} goodput {run.goodput:.3f} "
        f"wasted {run.wasted_share:.3f}  {classes}  {run.reasons}"
    )


def figures(found: Comparison) -> dict[str, float | None]:
    """Returns the figures of the JSON line, from one scenario."""

    def rejected(policy: str, load: float = OVERLOAD) -> float:
        return found.mean(policy, load, lambda run: run.rejected_share).mean

    def wasted(policy: str) -> float:
        return found.mean(policy, OVERLOAD, lambda run: run.wasted_tokens).mean

    def swung(policy: str) -> float:
        return estimate([swing(run.loads.decode) for run in found.swings[policy]]).mean

    return {
        "rejected_share_normal": rejected("predictive", NORMAL_LOAD),
        "high_attainment_2x": attainment(found, "predictive", OVERLOAD, Priority.HIGH).mean,
        "ttft_ratio_low_to_high_2x": found.mean("predictive", OVERLOAD, ttft_ratio).mean,
        "rejected_2x_predictive": rejected("predictive"),
        "rejected_2x_slo_now": rejected("slo_now"),
        "rejected_2x_queue_estimate": rejected("queue_estimate"),
        "wasted_prefill_2x_predictive": wasted("predictive"),
        "wasted_prefill_2x_slo_now": wasted("slo_now"),
        "oscillation_slo_now": swung("slo_now"),
        "oscillation_predictive": swung("predictive"),
    }


def attainment(found: Comparison, policy: str, load: float, priority: Priority) -> Estimate:
    """Returns the share of a class that met both targets."""
    return found.mean(policy, load, lambda run: run.classes[priority].attainment)


def ttft_ratio(run: SimRun) -> float | None:
    """Returns by how much low's TTFT is longer than high's, at the median of those served."""
    low = run.classes[Priority.LOW].median_ttft_s
    high = run.classes[Priority.HIGH].median_ttft_s
    return low / high if low and high else None


def show(found: Comparison, console: Console) -> None:
    """Prints the table."""
    scenario = found.scenario
    table = Table(
        title=f"{scenario.name} on {scenario.fleet.label}, TTFT {scenario.slo.ttft_s:g} s and TPOT "
        f"{scenario.slo.tpot_s * 1e3:g} ms, capacity {found.capacity:.2f}x the trace",
        title_justify="left",
        box=None,
    )
    heads = ("load", "policy", "rejected", "goodput", "wasted", "Mtokens wasted")
    for head in (*heads, "high", "normal", "low", "TTFT high", "low"):
        table.add_column(head, justify="right")
    for (policy, load), runs in sorted(found.runs.items(), key=lambda entry: entry[0][1]):
        del runs
        table.add_row(f"{load:g}x", policy, *_cells(found, policy, load))
    console.width = max(console.width, 150)
    console.print(table)


def _cells(found: Comparison, policy: str, load: float) -> list[str]:
    def ttft(priority: Priority) -> Estimate:
        return found.mean(policy, load, lambda run: run.classes[priority].median_ttft_s)

    shares = [
        found.mean(policy, load, lambda run: run.rejected_share),
        found.mean(policy, load, lambda run: run.goodput),
        found.mean(policy, load, lambda run: run.wasted_share),
    ]
    tokens = found.mean(policy, load, lambda run: run.wasted_tokens / 1e6)
    classes = [
        attainment(found, policy, load, priority) for priority in sorted(Priority, reverse=True)
    ]
    return [
        *(_percent(each) for each in shares),
        f"{tokens.mean:.2f}",
        *(_percent(each) for each in classes),
        f"{ttft(Priority.HIGH).mean:.2f} s",
        f"{ttft(Priority.LOW).mean:.2f} s",
    ]


def _percent(value: Estimate) -> str:
    half = "" if value.half_width is None else f" ±{100 * value.half_width:.1f}"
    return f"{100 * value.mean:.1f}{half} %"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
