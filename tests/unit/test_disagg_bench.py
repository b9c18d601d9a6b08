"""The comparison's own arithmetic: equal requests for both arms, targets, ratios, gaps."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bench.disagg.cores import Cores, divide
from bench.disagg.offer import Offer, Stream
from bench.disagg.point import Point, Seen, Turn
from bench.disagg.state import State
from bench.disagg.summary import figures, told
from bench.disagg.work import WORKLOADS, Pace, Shape, Slo, arrivals

PACE = Pace(prompt_token_s=0.001, lone_step_s=0.01, full_step_s=0.02)
TARGETS = Slo(ttft_s=1.0, tpot_s=0.03)


def turn(
    ttft_ms: float, tpot_ms: float, seconds: float = 1.0, slo: Slo = TARGETS
) -> dict[str, Any]:
    """Two requests, the second of which takes twice as long for a token."""
    seen = [Seen(ttft_ms / 1e3, factor * tpot_ms / 1e3, 5, factor == 1, "") for factor in (1, 2)]
    return asdict(Turn(seconds, 2.0, slo, tuple(seen)))


def test_both_arms_get_the_same_requests() -> None:
    shapes = WORKLOADS["mixed"].shapes
    assert arrivals(shapes, 5.0, 20.0, seed=3) == arrivals(shapes, 5.0, 20.0, seed=3)
    assert arrivals(shapes, 5.0, 20.0, seed=3) != arrivals(shapes, 5.0, 20.0, seed=4)


def test_a_run_offers_what_was_meant_of_each_shape() -> None:
    made = arrivals((Shape(100, 10, weight=2.0), Shape(1000, 10)), 3.0, 40.0, seed=5)
    assert len(made) == 120
    assert sum(it.prompt > 500 for it in made) == 40
    assert [it.at_s for it in made] == sorted(it.at_s for it in made)


def test_offer_survives_the_command_line() -> None:
    streams = (Stream((Shape(4, 5), Shape(6, 7, 2.0)), 1.5, 9, is_judged=False),)
    offer = Offer("127.0.0.1:1", streams, 3.0, 10, Slo(2.0, 0.1))
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


def test_a_point_counts_the_requests_of_all_turns() -> None:
    failed = Seen(0.0, None, 0, False, "DEADLINE_EXCEEDED")
    slo = Slo(ttft_s=0.2, tpot_s=0.015)
    turns = [Turn.read(turn(100, 10, slo=slo)), Turn(3.0, 2.0, slo, (failed, failed))]
    found = Point.of(turns)
    assert (found.requests, found.errors) == (4, {"DEADLINE_EXCEEDED": 2})
    assert found.offered_per_s == 1.0
    assert found.attained == found.goodput_per_s == 0.25
    assert found.local_share == 0.5
    assert found.tokens_per_s == 2.5
    assert found.tpot_ms["p99"] == 20.0


def test_ratios_say_how_often_better_the_split_is(tmp_path: Path) -> None:
    state = State(tmp_path / "state.json", keep=False)
    for number in range(2):
        state.put(f"mixed/0.4/split/{number}", turn(100, 10))
        state.put(f"mixed/0.9/split/{number}", turn(200, 30, seconds=0.5))
        state.put(f"mixed/0.4/together-auto/{number}", turn(250, 30))
        state.put(f"mixed/0.9/together-auto/{number}", turn(900, 60, seconds=0.5))
        state.put(f"mixed/0.4/together-64/{number}", turn(100, 40))
        state.put(f"mixed/0.9/together-64/{number}", turn(100, 40, seconds=0.5))
    state.put("mixed/whole", {})
    streams = {"alone": [turn(1, 9), turn(1, 10)], "beside": [turn(1, 11), turn(1, 10)]}
    state.put("interference", streams)
    state.put("machine", {"alone_ms": 10.0, "beside_ms": 12.0})
    kept = State(tmp_path / "state.json", keep=True)
    found = figures(kept)
    assert found["interference_without_mesh"] == pytest.approx(0.2)
    # At 0.4, where both of the split's requests are within 30 ms and one of the baseline's is,
    # beside the baseline that has some goodput.
    assert found["ttft_p99_ratio"] == 2.5
    assert found["tpot_p99_ratio"] == 3.0
    assert found["goodput_ratio"] == 2.0
    assert found["interference"] == pytest.approx(0.1)
    parts = told(kept)
    assert parts["mixed/ratios"]["together-64"]["tpot_p99_ratio"] == 4.0
    # With 45 ms the baseline's first requests at the high load are within the target, too.
    assert parts["mixed/goodput_ratio_by_looser_tpot"]["1"] == 2.0
    assert parts["mixed/goodput_ratio_by_looser_tpot"]["1.5"] == 1.0
    assert parts["mixed/targets"] == [{"ttft_s": 1.0, "tpot_s": 0.03}]
    assert parts["interference"]["beside"]["requests"] == 4
    assert not any("seen" in str(part) for part in parts.values())
