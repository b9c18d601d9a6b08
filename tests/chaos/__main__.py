"""`python -m tests.chaos`: runs a campaign and prints its report, last as one JSON line."""

import asyncio
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from bench.report import emit
from tests.chaos.campaign import Report, run_campaign
from tests.chaos.questions import make_questions

_CACHE = Path(".baton") / "chaos"


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of faults.")] = 20,
    seed: Annotated[int, typer.Option(help="Decides every round's plan.")] = 1,
    hosts: Annotated[
        bool, typer.Option("--hosts", help="Each worker in a network namespace (root).")
    ] = False,
    record: Annotated[bool, typer.Option(help="Keep the report in bench/results.")] = False,
) -> None:
    """Break the mesh at random under load and say what held."""
    questions = make_questions(seed, _CACHE)
    run_dir = Path(tempfile.mkdtemp(prefix="baton-chaos-"))
    typer.echo(f"logs in {run_dir}")
    report = asyncio.run(run_campaign(rounds, seed, questions, run_dir, typer.echo, on_hosts=hosts))
    _print(report)
    emit("chaos-hosts" if hosts else "chaos", report.figures(), _details(report, seed), record)
    raise typer.Exit(0 if report.is_clean else 1)


def _print(report: Report) -> None:
    for name, count in sorted(report.faults.items()):
        typer.echo(f"  {count:4d} x {name}")
    for ending, count in report.tally.endings.items():
        typer.echo(f"  {count:6d} requests: {ending.value}")
    for line in (*report.problems, *report.tally.details):
        typer.echo(f"  broken: {line}")


def _details(report: Report, seed: int) -> dict[str, object]:
    return {
        "seed": seed,
        "faults": dict(sorted(report.faults.items())),
        "endings": {ending.value: count for ending, count in report.tally.endings.items()},
        "typed_errors": dict(report.tally.errors),
        "broken": [*report.problems, *report.tally.details],
    }


if __name__ == "__main__":
    typer.run(main)
