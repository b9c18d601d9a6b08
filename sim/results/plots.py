"""Plots as PNG files; matplotlib is needed only here (the extra `bench`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sim.results.recorder import Recorder
from sim.results.summary import Estimate

_SIZE = (8.0, 4.5)
_DPI = 120
_BINS = 120

Curve = Sequence[tuple[float, Estimate]]
"""Load and goodput there."""


def goodput_over_load(path: Path, curves: Mapping[str, Curve]) -> None:
    """Draws goodput per second over offered load, with intervals, one line per experiment."""
    figure, axes = _figure()
    for label, curve in curves.items():
        loads = [load for load, _ in curve]
        means = [value.mean for _, value in curve]
        widths = [value.half_width or 0.0 for _, value in curve]
        axes.errorbar(loads, means, yerr=widths, marker="o", capsize=3, label=label)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("offered requests per second")
    axes.set_ylabel("requests per second within both limits")
    _save(figure, axes, path)


def cdfs(path: Path, recorders: Mapping[str, Recorder]) -> None:
    """Draws the distributions of TTFT and TPOT over all offered requests.

    A rejected request has no latency, so a line ends below 1 by their share.
    """
    figure, (left, right) = _figure(columns=2)
    for label, recorder in recorders.items():
        everyone = recorder.everyone
        _cdf(left, sorted(everyone.ttft_s), everyone.offered, label)
        _cdf(right, [1e3 * value for value in sorted(everyone.tpot_s)], everyone.offered, label)
    left.set_xscale("log")
    left.set_xlabel("TTFT in seconds")
    left.set_ylabel("share of all offered requests")
    right.set_xlabel("TPOT in milliseconds")
    left.grid(alpha=0.3)
    _save(figure, right, path)


def timeline(path: Path, recorders: Mapping[str, Recorder]) -> None:
    """Draws arrivals, and rejections of each experiment, over the trace's time."""
    figure, axes = _figure()
    for number, (label, recorder) in enumerate(recorders.items()):
        if number == 0:
            _rate(axes, recorder.arrivals_s, recorder, "offered")
        _rate(axes, recorder.rejected_s, recorder, f"rejected by {label}")
    axes.set_xlabel("seconds")
    axes.set_ylabel("requests per second")
    _save(figure, axes, path)


def _cdf(axes: Any, values: Sequence[float], offered: int, label: str) -> None:
    shares = [(position + 1) / offered for position in range(len(values))]
    axes.plot(values, shares, drawstyle="steps-post", label=label)


def _rate(axes: Any, times_s: Sequence[float], recorder: Recorder, label: str) -> None:
    width_s = max(recorder.last_s, 1e-9) / _BINS
    counts = [0] * (_BINS + 1)
    for time_s in times_s:
        counts[int(time_s / width_s)] += 1
    axes.plot(
        [position * width_s for position in range(_BINS)],
        [count / width_s for count in counts[:_BINS]],
        label=label,
    )


def _figure(columns: int = 1) -> tuple[Any, Any]:
    # Without pyplot nothing is global, and no display is asked for.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns)


def _save(figure: Any, axes: Any, path: Path) -> None:
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    for kind in (".png", ".svg"):
        figure.savefig(path.with_suffix(kind))
