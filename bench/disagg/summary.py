"""Figures and table from what was measured."""

from typing import Any

from bench.disagg.point import HEAD, Point, Turn, row
from bench.disagg.state import State
from bench.disagg.work import BINDING, WORKLOADS

SPLIT_NAME = "split"
_LOOSER = (1.0, 1.25, 1.5, 2.0)
"""Factors of the TPOT target by which the same requests are judged again: where it binds less."""


def figures(state: State) -> dict[str, float | None]:
    """Returns the benchmark's figures; None where a part was not measured."""
    values = state.values
    engine = values.get("engine", {})
    named: dict[str, float | None] = {
        "ttft_p99_ratio": None,
        "tpot_p99_ratio": None,
        "goodput_ratio": None,
        "engine_tokens_per_s": engine.get("engine_tokens_per_s"),
        "transformers_tokens_per_s": engine.get("plain_tokens_per_s"),
    }
    return named | _interference(values) | _ratios(values, BINDING)


def _ratios(values: dict[str, Any], work: str) -> dict[str, float | None]:
    """Returns how often better the split is than the baseline of the most goodput."""
    beside = _beside(values, work)
    return beside[_best(_judged(values, work))] if beside else {}


def _beside(values: dict[str, Any], work: str) -> dict[str, dict[str, float | None]]:
    """Returns how often better the split is than each baseline: p99s at the load where its own
    goodput is highest, and the highest goodput of both."""
    arms = _judged(values, work)
    if not arms:
        return {}
    ours = arms.pop(SPLIT_NAME)
    load = max(ours, key=lambda load: ours[load].goodput_per_s)
    at = ours[load]
    return {
        arm: {
            "ttft_p99_ratio": points[load].ttft_ms["p99"] / at.ttft_ms["p99"],
            "tpot_p99_ratio": points[load].tpot_ms["p99"] / at.tpot_ms["p99"],
            "goodput_ratio": at.goodput_per_s / max(1e-9, _goodput_per_s(points)),
        }
        for arm, points in arms.items()
    }


def _goodput_ratios(values: dict[str, Any], work: str) -> dict[str, float]:
    """Returns how often better the split's goodput is than the best baseline's, by how many times
    the TPOT target would have been. Chunks that are sized by the target stay as they were."""
    found = {}
    for factor in _LOOSER:
        arms = _judged(values, work, factor)
        ours = _goodput_per_s(arms.pop(SPLIT_NAME))
        theirs = max(_goodput_per_s(points) for points in arms.values())
        found[f"{factor:g}"] = ours / max(1e-9, theirs)
    return found


def _best(arms: dict[str, dict[float, Point]]) -> str:
    """Returns the baseline whose goodput is highest at its best load."""
    return max(arms.keys() - {SPLIT_NAME}, key=lambda arm: _goodput_per_s(arms[arm]))


def _goodput_per_s(points: dict[float, Point]) -> float:
    return max(point.goodput_per_s for point in points.values())


def turn_key(work: str, load: float, arm: str, turn: int) -> str:
    """Returns the name under which a turn is kept; `points_of` reads it."""
    return f"{work}/{load:g}/{arm}/{turn}"


def points_of(
    values: dict[str, Any], work: str, looser: float = 1.0
) -> dict[str, dict[float, Point]]:
    """Returns what a workload's turns showed so far, by arm and load, for `looser` times the TPOT
    target."""
    turns: dict[str, dict[float, list[Turn]]] = {}
    for key, value in values.items():
        if key.startswith(f"{work}/") and "seen" in value:
            _, load, arm, _ = key.split("/")
            turn = Turn.read(value).looser(looser)
            turns.setdefault(arm, {}).setdefault(float(load), []).append(turn)
    return {
        arm: {load: Point.of(taken) for load, taken in sorted(loads.items())}
        for arm, loads in turns.items()
    }


def _judged(
    values: dict[str, Any], work: str, looser: float = 1.0
) -> dict[str, dict[float, Point]]:
    """Returns the points of a workload that was measured whole; else none."""
    return points_of(values, work, looser) if f"{work}/whole" in values else {}


def told(state: State) -> dict[str, Any]:
    """Returns what was measured, for the record: points instead of single requests."""
    kept = {
        key: value
        for key, value in state.values.items()
        if "seen" not in value and key != "interference"
    }
    for work in WORKLOADS:
        for arm, loads in _judged(state.values, work).items():
            kept[f"{work}/{arm}"] = [
                {"load": load, **point.figures()} for load, point in loads.items()
            ]
        if beside := _beside(state.values, work):
            kept[f"{work}/ratios"] = beside
            kept[f"{work}/goodput_ratio_by_looser_tpot"] = _goodput_ratios(state.values, work)
            kept[f"{work}/targets"] = _targets(state.values, work)
    if found := _streams(state.values):
        kept["interference"] = {name: point.figures() for name, point in found.items()}
    return kept


def _targets(values: dict[str, Any], work: str) -> list[dict[str, Any]]:
    """Returns the targets of each round, in the order they were measured in."""
    turns = (value for key, value in values.items() if key.startswith(f"{work}/"))
    found = [value["slo"] for value in turns if "slo" in value]
    return [slo for number, slo in enumerate(found) if slo not in found[:number]]


def _streams(values: dict[str, Any]) -> dict[str, Point]:
    """Returns what streams showed alone and beside a busy prefill worker, if measured."""
    found = values.get("interference")
    if found is None:
        return {}
    return {name: Point.of([Turn.read(it) for it in turns]) for name, turns in found.items()}


def _interference(values: dict[str, Any]) -> dict[str, float | None]:
    """Returns by which share busy prefill beside raises the decodes' TPOT, and what the same
    computing beside raises a step by where no mesh is."""
    shares: dict[str, float | None] = dict.fromkeys(
        ("interference", "interference_p50", "interference_without_mesh")
    )
    if points := _streams(values):
        for name, quantile in (("interference", "p99"), ("interference_p50", "p50")):
            alone, beside = (points[it].tpot_ms[quantile] for it in ("alone", "beside"))
            shares[name] = beside / alone - 1
    if machine := values.get("machine"):
        shares["interference_without_mesh"] = machine["beside_ms"] / machine["alone_ms"] - 1
    return shares


def print_table(state: State) -> None:
    """Prints every point, and the ratios of each workload."""
    print(HEAD)
    for work in WORKLOADS:
        for arm, loads in _judged(state.values, work).items():
            for load, point in loads.items():
                print(row(f"{work}/{arm} {load:g}", point))
        best = _ratios(state.values, work)
        for arm, ratios in _beside(state.values, work).items():
            told = ", ".join(f"{name} {value:.2f}" for name, value in ratios.items() if value)
            print(f"{work}, beside {arm}{' (the best)' if ratios == best else ''}: {told}")
        if best:
            looser = _goodput_ratios(state.values, work).items()
            told = ", ".join(f"x {factor}: {ratio:.2f}" for factor, ratio in looser)
            print(f"{work}, goodput ratio by TPOT target: {told}")
    for name, point in _streams(state.values).items():
        print(row(f"interference/{name}", point))
