"""The comparison of times as a table: every part, then all of them together."""

from typing import Any

from rich.console import Console
from rich.table import Table

from bench.parity.times import MEASURES, QUANTILES, Parity


def show(console: Console, parity: Parity) -> None:
    """Prints what each part's simulation was made of, all quantiles and their errors."""
    table = Table(title="mesh and simulator", title_justify="left", box=None)
    for heading in ("part", "", "mesh ms", "simulator ms", "error"):
        table.add_column(heading, justify="right")
    for number, part in enumerate(parity.alone(), 1):
        console.print(f"{number}: {part.parts[0].probed.describe()}", soft_wrap=True)
        _add(table, str(number), part)
    _add(table, "all", parity)
    console.print(table)
    if parity.others is not None:
        console.print(f"others used {parity.others:.0%} of the machine meanwhile")


def record(parity: Parity) -> dict[str, Any]:
    """Returns the same for the record."""
    return {
        "others": parity.others,
        "all": _quantiles(parity),
        "parts": [
            {"probed": part.parts[0].probed.figures(), **_quantiles(part)}
            for part in parity.alone()
        ],
    }


def _add(table: Table, name: str, parity: Parity) -> None:
    for key, figures in _quantiles(parity).items():
        real, made, error = figures.values()
        table.add_row(name, key.replace("_", " "), f"{real:.1f}", f"{made:.1f}", f"{error:.1%}")


def _quantiles(parity: Parity) -> dict[str, dict[str, float]]:
    found = {}
    for what in MEASURES:
        for name, share in QUANTILES:
            real_s, made_s = parity.both(what, share)
            found[f"{what}_{name}"] = {
                "mesh_ms": round(1e3 * real_s, 1),
                "simulator_ms": round(1e3 * made_s, 1),
                "error": round(parity.error(what, share), 4),
            }
    return found
