"""Figures and table from what was measured."""

from typing import Any

from bench.disagg.point import HEAD, Point, Turn, row
from bench.disagg.state import State
from bench.disagg.work import BINDING, WORKLOADS, Slo


def figures(state: State) -> dict[str, float | None]:
    """Returns the benchmark's figures; None where a part was not measured."""
    values = state.values
    engine = values.get("engine", {})
    named: dict[str, float | None] = {
        "ttft_p99_ratio": None,
        "tpot_p99_ratio": None,
        "goodput_ratio": None,
        "interference": _interference(values.get("interference")),
        "interference_without_mesh": _of_the_machine(values.get("machine")),
        "engine_tokens_per_s": engine.get("engine_tokens_per_s"),
        "transformers_tokens_per_s": engine.get("plain_tokens_per_s"),
    }
    return named | _ratios(values, BINDING)


def _ratios(values: dict[str, Any], work: str) -> dict[str, float | None]:
    """Returns how often better the split is: p99s at the load where its goodput is highest, and
    the highest goodput of each arm."""
    best = values.get(f"{work}/best")
    if best is None:
        return {}
    points = _judged(values, work)
    ours, theirs = points["split"], points[best["arm"]]
    load = max(ours, key=lambda load: ours[load].goodput_per_s)
    most = max(point.goodput_per_s for point in theirs.values())
    return {
        "ttft_p99_ratio": theirs[load].ttft_ms["p99"] / ours[load].ttft_ms["p99"],
        "tpot_p99_ratio": theirs[load].tpot_ms["p99"] / ours[load].tpot_ms["p99"],
        "goodput_ratio": ours[load].goodput_per_s / max(1e-9, most),
    }


def points_of(values: dict[str, Any], work: str, slo: Slo) -> dict[str, dict[float, Point]]:
    """Returns what a workload's turns showed so far, by arm and load."""
    turns: dict[str, dict[float, list[Turn]]] = {}
    for key, value in values.items():
        if key.startswith(f"{work}/") and "seen" in value:
            _, load, arm, _ = key.split("/")
            turns.setdefault(arm, {}).setdefault(float(load), []).append(Turn.read(value))
    return {
        arm: {load: Point.of(taken, slo) for load, taken in sorted(loads.items())}
        for arm, loads in turns.items()
    }


def _judged(values: dict[str, Any], work: str) -> dict[str, dict[float, Point]]:
    """Returns the points of a workload that was measured whole; else none."""
    best = values.get(f"{work}/best")
    return {} if best is None else points_of(values, work, Slo(**best["slo"]))


def told(state: State) -> dict[str, Any]:
    """Returns what was measured, for the record: points instead of single requests."""
    kept = {key: value for key, value in state.values.items() if "seen" not in value}
    for work in WORKLOADS:
        for arm, loads in _judged(state.values, work).items():
            kept[f"{work}/{arm}"] = [
                {"load": load, **point.figures()} for load, point in loads.items()
            ]
    return kept


def _interference(found: dict[str, Any] | None) -> float | None:
    """Returns by how much busy prefill beside raises the decodes' TPOT p99; a share."""
    if found is None:
        return None
    return _raised(*(found[name]["tpot_ms"]["p99"] for name in ("alone", "beside", "again")))


def _of_the_machine(found: dict[str, float] | None) -> float | None:
    """Returns what the same computing beside raises a step by where no mesh is; a share."""
    if found is None:
        return None
    return _raised(found["alone_ms"], found["beside_ms"], found["again_ms"])


def _raised(alone: float, beside: float, again: float) -> float:
    return float(beside / ((alone + again) / 2) - 1)


def print_table(state: State) -> None:
    """Prints every point, and the ratios of each workload."""
    print(HEAD)
    for work in WORKLOADS:
        for arm, loads in _judged(state.values, work).items():
            for load, point in loads.items():
                print(row(f"{work}/{arm} {load:g}", point))
        best = state.values.get(f"{work}/best")
        if best:
            ratios = _ratios(state.values, work)
            told = ", ".join(f"{name} {value:.2f}" for name, value in ratios.items() if value)
            slo = best["slo"]
            print(
                f"{work}: TTFT within {slo['ttft_s'] * 1e3:.0f} ms, TPOT within "
                f"{slo['tpot_s'] * 1e3:.1f} ms; best baseline {best['arm']}; {told}"
            )
    for name, values in state.values.get("interference", {}).items():
        print(row(f"interference/{name}", Point(**values)))
