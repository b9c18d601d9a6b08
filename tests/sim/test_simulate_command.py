"""`baton simulate` as its users see it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from baton.cli.main import app
from baton.cli.simulation import duration_s
from baton.errors import ConfigError


def _run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["simulate", *arguments])
    return result.exit_code, result.output


def test_two_policies_and_the_aggregated_fleet_side_by_side(tmp_path: Path) -> None:
    code, output = _run(
        *("--trace", "mix", "--requests", "150", "--hardware", "smg-mock", "--seeds", "2"),
        *("--prefill", "1", "--decode", "2", "--policy", "weighted", "--compare", "round_robin"),
        "--baseline",
        *("--slo-ttft", "2s", "--slo-tpot", "50ms", "--rate", "0.5,1"),
        *("--json", str(tmp_path / "out.json")),
    )
    assert code == 0, output
    for expected in ("SMG's mock worker", "1P+2D", "3A", "weighted", "round_robin"):
        assert expected in output
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [result["rate"] for result in results] == [0.5] * 3 + [1.0] * 3
    for result in results:
        assert len(result["runs"]) == 2
        assert 0 <= result["figures"]["goodput"]["mean"] <= 1


def test_plots_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    code, output = _run(
        *("--trace", "mix", "--requests", "60", "--hardware", "smg-mock", "--seeds", "1"),
        *("--prefill", "1", "--decode", "1", "--plots", str(tmp_path)),
    )
    assert code == 0, output
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "goodput.png",
        "latency.png",
        "timeline.png",
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--trace", "nowhere.csv"), "no such file"),
        (("--trace", "mix", "--hardware", "abacus"), "no hardware 'abacus'"),
        (("--trace", "mix", "--hardware", "smg-mock", "--policy", "dice"), "no routing policy"),
        (("--trace", "mix", "--slo-ttft", "soon"), "--slo-ttft"),
        (("--trace", "mix", "--hardware", "smg-mock", "--decode", "0"), "at least one decode"),
    ],
)
def test_what_cannot_be_is_one_clear_line(arguments: tuple[str, ...], expected: str) -> None:
    code, output = _run(*arguments)
    assert code == 1
    assert expected in output


def test_durations_have_units() -> None:
    assert duration_s("x", "200ms") == pytest.approx(0.2)
    assert duration_s("x", "1.5 m") == 90
    with pytest.raises(ConfigError):
        duration_s("x", "200")
