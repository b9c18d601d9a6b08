"""Results in the terminal."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from sim.results.summary import Estimate

Summary = Mapping[str, Estimate | None]

_LABEL_WIDTH = 34
_COLUMN_WIDTH = 20

_ROWS: tuple[tuple[str, str, float, str], ...] = (
    ("goodput, of all offered", "goodput", 100, "%"),
    ("goodput per second", "goodput_per_s", 1, "req/s"),
    ("rejected", "rejected", 100, "%"),
    ("TTFT p50", "ttft_p50_s", 1, "s"),
    ("TTFT p90", "ttft_p90_s", 1, "s"),
    ("TTFT p99", "ttft_p99_s", 1, "s"),
    ("TPOT p50", "tpot_p50_s", 1e3, "ms"),
    ("TPOT p90", "tpot_p90_s", 1e3, "ms"),
    ("TPOT p99", "tpot_p99_s", 1e3, "ms"),
    ("short prompts: TTFT p99", "short_ttft_p99_s", 1, "s"),
    ("long prompts: TTFT p99", "long_ttft_p99_s", 1, "s"),
    ("hit rate", "hit_rate", 100, "%"),
    ("  of the ideal at this size", "hit_share_of_ideal", 100, "%"),
    ("  ideal without bound", "ideal_hit_rate", 100, "%"),
    ("long prompts offloaded", "offload_share", 100, "%"),
    ("prefill computed in vain", "wasted_prefill", 100, "%"),
    ("prefill workers busy", "prefill_utilisation", 100, "%"),
    ("decode workers busy", "decode_utilisation", 100, "%"),
    ("busiest prefill worker over mean", "prefill_imbalance", 1, ""),
    ("busiest decode worker over mean", "decode_imbalance", 1, ""),
    ("decodes per step", "mean_batch", 1, ""),
    ("missed the TTFT limit", "ttft_missed", 100, "%"),
    ("missed the TPOT limit", "tpot_missed", 100, "%"),
    ("placements as the oracle's", "oracle_agreement", 100, "%"),
    ("  by TTFT alone", "ttft_agreement", 100, "%"),
)


def width(columns: int) -> int:
    """Returns how wide a table with this many experiments is, in characters."""
    return _LABEL_WIDTH + columns * _COLUMN_WIDTH


def comparison(title: str, columns: Sequence[tuple[str, Summary]]) -> Table:
    """Returns one column per experiment, one row per figure; intervals are 95 %."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for heading, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for label, name, scale, unit in _ROWS:
        values = [summary.get(name) for _, summary in columns]
        if any(value is not None for value in values):
            table.add_row(label, *(_cell(value, scale, unit) for value in values))
    return table


def _cell(value: Estimate | None, scale: float, unit: str) -> str:
    if value is None:
        return "-"
    text = f"{value.mean * scale:.4g}"
    if value.half_width is not None:
        text += f" \u00b1{value.half_width * scale:.2g}"
    return f"{text} {unit}".rstrip()
