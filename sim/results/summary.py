"""Several seeds of one experiment in one: means with intervals."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sim.results.metrics import RunMetrics

_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t for a two-sided 95 % interval, by degrees of freedom from 1."""
_T_MANY = 1.96


class Estimate(NamedTuple):
    """A mean over seeds; the true one is within `half_width` of it in 95 of 100 cases.

    `half_width` is None with fewer than two seeds.
    """

    mean: float
    half_width: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """Returns the mean and its 95 % interval by Student's t. Raises ValueError without values."""
    if not values:
        raise ValueError("no values")
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean, None)
    freedom = len(values) - 1
    t = _T_95[freedom - 1] if freedom <= len(_T_95) else _T_MANY
    return Estimate(mean, t * statistics.stdev(values) / math.sqrt(len(values)))


def summarise(runs: Sequence[RunMetrics]) -> dict[str, Estimate | None]:
    """Returns every figure over the runs; None where a run has none."""
    names = dict.fromkeys(name for run in runs for name in run.figures)
    summary: dict[str, Estimate | None] = {}
    for name in names:
        values = [run.figures.get(name) for run in runs]
        known = [value for value in values if value is not None]
        summary[name] = estimate(known) if len(known) == len(runs) else None
    return summary


def as_json(runs: Sequence[RunMetrics]) -> dict[str, Any]:
    """Returns the summary and each seed's counts as values for JSON."""
    summary = summarise(runs)
    rejections: Counter[str] = Counter()
    placements: Counter[str] = Counter()
    for run in runs:
        rejections.update(run.rejections)
        placements.update(run.placements)
    return {
        "seeds": [run.seed for run in runs],
        "figures": {name: _estimate_json(value) for name, value in summary.items()},
        "rejections": dict(rejections),
        "placements": dict(placements),
        "runs": [dict(run.figures) for run in runs],
    }


def _estimate_json(value: Estimate | None) -> Mapping[str, float | None] | None:
    return None if value is None else value._asdict()
