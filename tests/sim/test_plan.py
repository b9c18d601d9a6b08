"""The planner finds the split that serves most, and says when no split is better."""

import json
from pathlib import Path

from typer.testing import CliRunner

from baton.cli.main import app
from sim.costs.model import StepCosts
from sim.experiment import Experiment
from sim.planner import PRECISION, Planner, splits
from sim.results.recorder import Slo
from sim.setup import PolicySpec
from sim.traces.arrivals import Arrivals
from sim.traces.synthetic import MixTrace
from tests.sim.worlds import fleet

COSTS = StepCosts(prefill=(4e-3, 1e-4, 1e-8), decode=(8e-3, 3e-4, 1e-6))


def _experiment(workers: int, slo: Slo) -> Experiment:
    trace = MixTrace(120, Arrivals(6.0), longest=1024)
    spec = fleet(aggregated=workers, costs=COSTS, kv_tokens=16_384)
    return Experiment(spec, trace, PolicySpec(admits_all=True), slo)


def test_a_capacity_is_attained_and_somewhat_more_is_not() -> None:
    planner = Planner()
    found = planner.capacity(_experiment(2, Slo(1.0, 0.03)))
    assert found.load > 0
    assert found.run is not None
    assert (found.run.metrics.figures["goodput"] or 0) >= 0.9
    beyond = planner.past_the_knee(found, PRECISION**2)
    assert beyond.beyond is not None
    assert (beyond.beyond.metrics.figures["goodput"] or 0) < 0.93
    assert beyond.gives_way in ("TTFT", "TPOT")


def test_a_fleet_that_never_attains_has_no_capacity() -> None:
    assert Planner().capacity(_experiment(1, Slo(1.0, 1e-3))).load == 0.0


def test_every_split_is_tried_and_worse_ones_cost_one_run() -> None:
    base = _experiment(4, Slo(1.0, 0.03))
    fleets = list(splits(base.fleet))
    assert [(it.prefill, it.decode) for it in fleets] == [(2, 2), (1, 3), (3, 1)]
    planner = Planner()
    [good] = planner.best(iter([base]))
    runs = planner.runs
    assert planner.capacity(base, good.load * 1.5).load == 0.0
    assert planner.runs == runs + 1


def test_the_command_says_what_to_run_and_why(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    result = CliRunner().invoke(
        app,
        [
            *("plan", "--trace", "mix", "--hardware", "smg-mock", "--gpus", "3"),
            *("--requests", "120", "--seeds", "2", "--slo-ttft", "2s", "--slo-tpot", "30ms"),
            *("--json", str(out)),
        ],
    )
    assert result.exit_code == 0, result.output
    advice = json.loads(out.read_text())["advice"]
    assert advice.startswith("Run ")
    assert "Why: " in advice
    assert advice.split()[1].rstrip(":") in result.output


def test_too_few_gpus_are_one_clear_line() -> None:
    result = CliRunner().invoke(app, ["plan", "--hardware", "h100-copy", "--gpus", "8"])
    assert result.exit_code == 1
    assert "--gpus 16" in result.output
