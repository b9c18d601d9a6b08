"""The swings as a picture; matplotlib is needed only here (the extra `bench`)."""

from collections.abc import Mapping
from pathlib import Path

from bench.qos.simulated import SAMPLE_S, Loads


def oscillation(path: Path, title: str, loads: Mapping[str, Loads], until_s: float) -> None:
    """Draws both loads of each policy over time, one row a policy."""
    # Without pyplot nothing is global, and no display is asked for.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 3.0 * len(loads)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(loads), 1, sharex=True, squeeze=False)
    for (policy, load), (axes,) in zip(loads.items(), rows, strict=True):
        seconds = [SAMPLE_S * number for number in range(len(load.decode))]
        axes.plot(seconds, load.prefill, label="prefill: promised wait / TTFT target")
        axes.plot(seconds, load.decode, label="decode: time per token / TPOT target")
        axes.axhline(1.0, color="grey", linewidth=0.8)
        axes.set_title(policy)
        axes.set_xlim(0, until_s)
        axes.set_ylabel("load")
        axes.grid(alpha=0.3)
    rows[0][0].legend(loc="upper right")
    rows[-1][0].set_xlabel("seconds")
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    for kind in (".png", ".svg"):
        figure.savefig(path.with_suffix(kind))
