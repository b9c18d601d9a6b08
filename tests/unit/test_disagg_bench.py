"""The comparison's own arithmetic: equal requests for both arms, targets, ratios, gaps."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bench.disagg.cores import Cores, divide
from bench.disagg.offer import Offer, Stream
from bench.disagg.state import State
from bench.disagg.summary import figures
from bench.disagg.work import WORKLOADS, Pace, Shape, Slo, arrivals

PACE = Pace(prompt_token_s=0.001, lone_step_s=0.01, full_step_s=0.02)


def point(ttft_ms: float, tpot_ms: float, attained: float) -> dict[str, Any]:
    return {
        "offered_per_s": 2.0,
        "ttft_ms": {"p99": ttft_ms},
        "tpot_ms": {"p99": tpot_ms},
        "attained": attained,
    }


def test_both_arms_get_the_same_requests() -> None:
    shapes = WORKLOADS["mixed"].shapes
    assert arrivals(shapes, 5.0, 20.0, seed=3) == arrivals(shapes, 5.0, 20.0, seed=3)
    assert arrivals(shapes, 5.0, 20.0, seed=3) != arrivals(shapes, 5.0, 20.0, seed=4)


def test_offer_survives_the_command_line() -> None:
    streams = (Stream((Shape(4, 5), Shape(6, 7, 2.0)), 1.5, 9, is_judged=False),)
    offer = Offer("127.0.0.1:1", streams, 3.0, Slo(1.0, 0.1), 10)
    assert Offer.read(json.dumps(asdict(offer))) == offer


def test_targets_and_most_load_follow_from_the_pace() -> None:
    work = WORKLOADS["decode-heavy"]
    slo = Slo.of(work, PACE)
    assert slo.ttft_s == pytest.approx(work.ttft_factor * 0.106)
    assert slo.tpot_s == pytest.approx(work.tpot_factor * 0.01)
    assert PACE.most_per_s(work) == pytest.approx(1 / (96 * 0.0025))


def test_balanced_prompts_keep_both_roles_equally_busy() -> None:
    work = WORKLOADS["mixed"]
    balanced = work.stretched(PACE.balance(work))
    assert PACE.prefill_s(balanced.mean("prompt")) == pytest.approx(
        PACE.decode_s(balanced), rel=0.01
    )


def test_workers_get_real_cores_and_the_rest_shares_no_unit_with_them() -> None:
    assert divide(range(8), lambda core: {core, core ^ 1}) == Cores((0, 2), (4, 5, 6, 7))
    assert divide(range(8), lambda core: {core}) == Cores((0, 1), (2, 3, 4, 5, 6, 7))
    assert divide((3, 5), lambda core: {core}) == Cores((3, 5), ())
    assert divide((0, 1), lambda core: {0, 1}) == Cores((0, 1), ())
    assert divide((0,), lambda core: {core}) == Cores((0,), ())


def test_figures_name_what_was_not_measured(tmp_path: Path) -> None:
    assert set(figures(State(tmp_path / "none", keep=True)).values()) == {None}


def test_ratios_say_how_often_better_the_split_is(tmp_path: Path) -> None:
    state = State(tmp_path / "state.json", keep=False)
    state.put("mixed/split", [point(100, 10, 1.0)])
    state.put("mixed/together-auto", [point(250, 20, 0.5)])
    state.put("mixed/best", {"arm": "together-auto", "slo": asdict(Slo(1.0, 0.1))})
    state.put(
        "interference",
        {name: point(1, tpot, 1.0) for name, tpot in (("alone", 9), ("beside", 11), ("again", 11))},
    )
    state.put("machine", {"alone_ms": 10.0, "beside_ms": 12.0, "again_ms": 14.0})
    found = figures(State(tmp_path / "state.json", keep=True))
    assert found["interference_without_mesh"] == pytest.approx(0.0)
    assert found["ttft_p99_ratio"] == 2.5
    assert found["tpot_p99_ratio"] == 2.0
    assert found["goodput_ratio"] == 2.0
    assert found["interference"] == pytest.approx(0.1)
