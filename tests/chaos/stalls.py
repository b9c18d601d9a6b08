"""How long event loops answered to nobody while there was load, from the metrics that they export.

What a process exports counts from its start, so that of loading a model is in it, before the worker
takes requests. What came later is the difference of two exports.
"""

from collections.abc import Iterable
from typing import Any

from baton.telemetry.names import LOOP_STALL

Points = dict[str, Any]
"""The latest histogram point of each process, by the service's name."""


def latest_points(metrics: Iterable[tuple[str, Any]]) -> Points:
    """Returns the points of what was received so far, in the order in which it was."""
    return {
        service: point
        for service, metric in metrics
        if metric.name == LOOP_STALL.name
        for point in metric.histogram.data_points
    }


def longest_ms(before: Points, after: Points) -> dict[str, float]:
    """Returns the longest stall of each process since `before`: exactly, or the most it can be."""
    return {
        service: round(1e3 * _longest_s(before.get(service), point), 1)
        for service, point in after.items()
    }


def _longest_s(before: Any | None, after: Any) -> float:
    """A longer one than before is known exactly, a shorter one by its bucket's upper bound."""
    if before is None or after.max > before.max:
        return float(after.max)
    grown = [
        index
        for index, (early, late) in enumerate(
            zip(before.bucket_counts, after.bucket_counts, strict=True)
        )
        if late > early
    ]
    if not grown:
        return 0.0
    bounds = [*after.explicit_bounds, after.max]
    return float(min(bounds[grown[-1]], after.max))
