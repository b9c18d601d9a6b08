"""How every benchmark reports: a table for people and, last, one JSON line for machines."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import Progress

RESULTS = Path(__file__).parent / "results"

Item = TypeVar("Item")


def emit(
    bench: str,
    figures: Mapping[str, float | str | None],
    details: Mapping[str, Any],
    record: bool = False,
) -> None:
    """Prints the figures; with `record` keeps them and the details in bench/results."""
    for name, value in figures.items():
        print(f"  {name:40} {_shown(value)}")
    rounded = {
        name: float(f"{value:.5g}") if isinstance(value, float | int) else value
        for name, value in figures.items()
    }
    line = {"bench": bench, "figures": rounded, "machine": machine(), "commit": commit()}
    if record:
        RESULTS.mkdir(exist_ok=True)
        kept = {**line, "details": dict(details)}
        (RESULTS / f"{bench}.json").write_text(json.dumps(kept, indent=1) + "\n")
    print(json.dumps(line), flush=True)


def _shown(value: float | str | None) -> str:
    if value is None:
        return "not measured"
    return value if isinstance(value, str) else f"{value:,.4g}"


def machine() -> dict[str, Any]:
    """Returns what the figures were measured on, and how busy it was with other things."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.system(),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def commit() -> str:
    """Returns the commit that is checked out, with a plus when there are changes; else empty."""
    git = ("git", "-C", str(Path(__file__).parent))
    try:
        name = subprocess.run(  # noqa: S603 - fixed arguments
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changes = subprocess.run(  # noqa: S603 - fixed arguments
            [*git, "status", "--porcelain"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{name}+" if changes else name


def note(text: str) -> None:
    """Tells on stderr how far a benchmark is."""
    print(text, file=sys.stderr, flush=True)


def steps(items: Sequence[Item], what: str) -> Iterator[Item]:
    """Yields the items under a bar on stderr, where that is a terminal.

    The bar is drawn between two steps only, so that it takes nothing from what is measured.
    """
    console = Console(stderr=True)
    shown = Progress(
        console=console, auto_refresh=False, transient=True, disable=not console.is_terminal
    )
    with shown:
        task = shown.add_task(what, total=len(items))
        for item in items:
            shown.refresh()
            yield item
            shown.advance(task)


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
