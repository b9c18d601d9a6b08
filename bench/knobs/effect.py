"""What two values of a setting differ in, in words."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.knobs.simulated import Figures
from sim.results.summary import estimate

MIN_CHANGE = 0.01
"""Smaller relative changes are not worth a word."""

_LABELS = {
    "goodput": ("goodput", "%"),
    "ttft_p50_s": ("TTFT p50", "s"),
    "ttft_p99_s": ("TTFT p99", "s"),
    "tpot_p99_s": ("TPOT p99", "s"),
    "hit_rate": ("tokens from caches", "%"),
    "offload_share": ("long prompts gone remote", "%"),
    "rejected": ("refused", "%"),
    "high_attainment": ("high within targets", "%"),
    "normal_attainment": ("normal", "%"),
    "low_attainment": ("low", "%"),
    "goodput_a": ("tenant a within targets", "%"),
    "goodput_b": ("tenant b", "%"),
    "attainment": ("within limits", "%"),
    "worker_hours": ("worker-hours", ""),
    "turns_per_h": ("changes of direction an hour", ""),
    "again_cached_tokens": ("cached tokens of a prompt that comes again", ""),
    "again_ttft_s": ("its TTFT", "s"),
    "router_cpu_s": ("router CPU per request", "s"),
}


@dataclass(frozen=True, slots=True)
class Change:
    """A figure under the default and under the other value: means over the same seeds."""

    figure: str
    before: float
    after: float
    is_seen: bool


def changes(before: Sequence[Figures], after: Sequence[Figures]) -> list[Change]:
    """Compares figure by figure, seed by seed.

    A change is seen when it is outside the 95 % interval of the differences, and not tiny.
    """
    found = []
    for name in before[0]:
        pairs = [
            (one, other)
            for one, other in zip(
                (it[name] for it in before), (it[name] for it in after), strict=True
            )
            if one is not None and other is not None
        ]
        if not pairs:
            continue
        differences = estimate([other - one for one, other in pairs])
        old, new = (statistics.fmean(side) for side in zip(*pairs, strict=True))
        is_large = abs(differences.mean) > MIN_CHANGE * max(abs(old), abs(new))
        is_sure = abs(differences.mean) > (differences.half_width or 0.0)
        found.append(Change(name, old, new, is_large and is_sure))
    return found


def words(base: object, other: object, found: Sequence[Change]) -> str:
    """Returns what changes when `base` becomes `other`."""
    seen = ", ".join(_change(it) for it in found if it.is_seen)
    if not seen:
        looked = ", ".join(_LABELS[it.figure][0] for it in found)
        seen = f"no difference seen ({looked})"
    return f"{_value(base)} to {_value(other)}: {seen}"


def _change(change: Change) -> str:
    label, unit = _LABELS[change.figure]
    factor, shown = 1.0, unit
    if unit == "%":
        factor = 100.0
    elif unit == "s" and max(change.before, change.after) < 1:
        factor, shown = 1e3, "ms"
    before, after = (_number(factor * value) for value in (change.before, change.after))
    return f"{label} {before} to {after}{' ' * bool(shown)}{shown}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        inner = ", ".join(f"{name}: {_value(each)}" for name, each in value.items())
        return f"{{{inner}}}" if value else "none"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) or "none"
