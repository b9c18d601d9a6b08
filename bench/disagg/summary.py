"""Figures and table from what was measured."""

from typing import Any

from bench.disagg.offer import HEAD, Point, row
from bench.disagg.state import State
from bench.disagg.work import BINDING, WORKLOADS


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
    best = values.get(f"{work}/best")
    if best is None:
        return {}
    ours, theirs = values[f"{work}/split"][-1], values[f"{work}/{best['arm']}"][-1]
    return {
        "ttft_p99_ratio": theirs["ttft_ms"]["p99"] / ours["ttft_ms"]["p99"],
        "tpot_p99_ratio": theirs["tpot_ms"]["p99"] / ours["tpot_ms"]["p99"],
        "goodput_ratio": _goodput(ours) / max(1e-9, _goodput(theirs)),
    }


def _goodput(point: dict[str, Any]) -> float:
    return float(point["attained"]) * float(point["offered_per_s"])


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
        for key, points in state.values.items():
            if key.startswith(f"{work}/") and isinstance(points, list):
                for point in points:
                    _print_point(key, point)
        best = state.values.get(f"{work}/best")
        if best:
            ratios = _ratios(state.values, work)
            told = ", ".join(f"{name} {value:.2f}" for name, value in ratios.items() if value)
            slo = best["slo"]
            print(
                f"{work}: TTFT within {slo['ttft_s'] * 1e3:.0f} ms, TPOT within "
                f"{slo['tpot_s'] * 1e3:.1f} ms; best baseline {best['arm']}; {told}"
            )
    for name, point in state.values.get("interference", {}).items():
        _print_point(f"interference/{name}", {"load": 0.0, **point})


def _print_point(key: str, values: dict[str, Any]) -> None:
    point = Point(**{name: value for name, value in values.items() if name != "load"})
    print(row(f"{key}", point))
