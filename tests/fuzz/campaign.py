"""`python -m tests.fuzz.campaign --minutes N`: every reader's fuzzer at once, and what they did.

With `--record` the times and executions are added to those in bench/results/fuzz.json, so that
hours can be collected over several runs; the inputs found so far are where the next run begins.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from bench.report import RESULTS, emit, note
from tests.fuzz.targets import TARGETS

_RESULT = RESULTS / "fuzz.json"
_LATE_S = 300.0
"""A fuzzer looks at the clock between two inputs only, and may get little of the machine."""

_KINDS = ("crash", "timeout", "oom", "leak")
"""What the fuzzer keeps as a slow unit is slow by the clock, as anything is on a busy machine."""

_EXECUTED = re.compile(rb"^(?:#|stat::number_of_executed_units:\s*)(\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Effort:
    """What was spent on one reader. `corpus` counts inputs that reached something new."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    executions: int = 0
    corpus: int = 0
    findings: int = 0

    def after(self, earlier: "Effort") -> "Effort":
        """Returns both together; the corpus and the findings in it are the later one's."""
        return Effort(
            round(self.wall_s + earlier.wall_s, 1),
            round(self.cpu_s + earlier.cpu_s, 1),
            self.executions + earlier.executions,
            self.corpus,
            self.findings,
        )


def main(
    minutes: Annotated[float, typer.Option(help="How long each fuzzer runs.")] = 60.0,
    corpus: Annotated[Path, typer.Option(help="Where inputs are kept between runs.")] = Path(
        ".baton/fuzz"
    ),
    record: Annotated[bool, typer.Option(help="Add to bench/results/fuzz.json.")] = False,
) -> None:
    """Run the fuzzer of every reader side by side."""
    corpus.mkdir(parents=True, exist_ok=True)
    efforts = _all(minutes * 60, corpus)
    if record:
        earlier = _earlier()
        efforts = {name: it.after(earlier.get(name, Effort())) for name, it in efforts.items()}
    for name, effort in efforts.items():
        print(f"  {name:18} {effort}")
    emit("fuzz", _figures(efforts), {name: asdict(it) for name, it in efforts.items()}, record)
    raise typer.Exit(1 if any(it.findings for it in efforts.values()) else 0)


def _all(seconds: float, corpus: Path) -> dict[str, Effort]:
    with ThreadPoolExecutor(len(TARGETS)) as pool:
        return dict(
            zip(TARGETS, pool.map(lambda it: _one(it, seconds, corpus), TARGETS), strict=True)
        )


def _one(name: str, seconds: float, corpus: Path) -> Effort:
    """Runs one fuzzer until its time is over or it found something."""
    log = corpus / f"{name}.log"
    options = ("--seconds", str(max(1, round(seconds))), "--corpus", str(corpus))
    command = (sys.executable, "-m", "tests.fuzz", name, *options)
    began_s = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    cpu_s = _cpu_s_at_end(process.pid, began_s + seconds + _LATE_S)
    inputs = corpus / name
    effort = Effort(
        round(time.monotonic() - began_s, 1),
        round(cpu_s, 1),
        max(map(int, _EXECUTED.findall(log.read_bytes())), default=0),
        len(list(inputs.iterdir())) if inputs.is_dir() else 0,
        sum(len(list(corpus.glob(f"{name}-finding-{kind}-*"))) for kind in _KINDS),
    )
    note(f"{name}: {effort}")
    return effort


def _cpu_s_at_end(pid: int, deadline_s: float) -> float:
    """Waits for a process, ends it after the deadline, and returns what it used of the CPU."""
    while True:
        ended, _, used = os.wait4(pid, os.WNOHANG)
        if ended:
            return used.ru_utime + used.ru_stime
        if time.monotonic() > deadline_s:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)


def _earlier() -> dict[str, Effort]:
    if not _RESULT.exists():
        return {}
    details = json.loads(_RESULT.read_text())["details"]
    return {name: Effort(**it) for name, it in details.items()}


def _figures(efforts: dict[str, Effort]) -> dict[str, float]:
    return {
        "targets": len(efforts),
        "wall_h_min": min(it.wall_s for it in efforts.values()) / 3600,
        "cpu_h_min": min(it.cpu_s for it in efforts.values()) / 3600,
        "cpu_h": sum(it.cpu_s for it in efforts.values()) / 3600,
        "executions": sum(it.executions for it in efforts.values()),
        "findings": sum(it.findings for it in efforts.values()),
    }


if __name__ == "__main__":
    typer.run(main)
