"""`python -m tests.chaos`: runs a campaign and prints its report, last as one JSON line."""

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from bench.report import emit
from tests.chaos.campaign import run_campaign
from tests.chaos.questions import make_questions
from tests.chaos.report import Report, Round, append_round, read_rounds

_CACHE = Path(".baton") / "chaos"


def main(
    rounds: Annotated[int, typer.Option(min=0, help="Rounds of faults with this seed.")] = 20,
    seed: Annotated[int, typer.Option(help="Decides every round's plan.")] = 1,
    hosts: Annotated[
        bool, typer.Option("--hosts", help="Each worker in a network namespace (root).")
    ] = False,
    routers: Annotated[int, typer.Option(min=1, help="Routers, and admission services.")] = 1,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Keep each round in this file; leave out those that it has and that held."
        ),
    ] = None,
    record: Annotated[bool, typer.Option(help="Keep the report in bench/results.")] = False,
) -> None:
    """Break the mesh at random under load and say what held.

    The report is about every round in the file of --resume, whatever its seed.
    """
    before = read_rounds(resume) if resume else []
    done = {it.number for it in before if it.seed == seed and not it.broken}
    numbers = [number for number in range(rounds) if number not in done]
    after = asyncio.run(_run(numbers, seed, resume, routers, hosts)) if numbers else []
    report = Report([*before, *after])
    _print(report)
    emit("chaos-hosts" if hosts else "chaos", report.figures(), report.details(), record)
    raise typer.Exit(1 if report.broken() else 0)


async def _run(
    numbers: Sequence[int], seed: int, resume: Path | None, routers: int, hosts: bool
) -> list[Round]:
    questions = make_questions(seed, _CACHE)
    run_dir = Path(tempfile.mkdtemp(prefix="baton-chaos-"))
    typer.echo(f"logs in {run_dir}")
    done = []
    campaign = run_campaign(numbers, seed, questions, run_dir, routers=routers, on_hosts=hosts)
    async for it in campaign:
        done.append(it)
        if resume:
            append_round(resume, it)
        typer.echo(_line(it))
    return done


def _line(it: Round) -> str:
    hit = ", ".join(f"{fault} of {who}" for fault, who in zip(it.faults, it.victims, strict=True))
    asked = sum(it.endings.values())
    words = f"{hit}: {asked} requests, whole after {it.recovery_s:.2f} s"
    if it.waited_for:
        words += f" (waited for: {it.waited_for})"
    words += f", took {it.took_s:.1f} s, starved {it.starved}"
    return "\n".join((f"{it.number + 1:4d} {words}", *(f"  {line}" for line in it.broken)))


def _print(report: Report) -> None:
    for name, count in sorted(report.faults().items()):
        typer.echo(f"  {count:4d} x {name}")
    for ending, count in report.endings().items():
        typer.echo(f"  {count:6d} requests: {ending}")
    for line in report.broken():
        typer.echo(f"  broken: {line}")


if __name__ == "__main__":
    typer.run(main)
