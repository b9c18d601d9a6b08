"""A long run of many streams with random cancels: what grows, what stalls, what fails.

`python -m tests.chaos.soak --minutes N --streams N --engine torch|simulated`
"""

import asyncio
import random
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from baton.engine.simulated.spec import load_spec
from baton.engine.simulated.tokens import answer
from baton.local.roles import Role
from baton.models import DEFAULT_MODEL
from baton.telemetry.names import LOOP_STALL
from bench.report import emit, note
from tests.chaos.fleet import Fleet
from tests.chaos.observer import look
from tests.chaos.questions import make_questions
from tests.chaos.traffic import Ending, Question, Tally, Traffic
from tests.support.otlp import OtlpReceiver

_WARM_UP_SHARE = 0.2
"""Memory is compared between the end of this part of the run and the end of all of it."""

_SAMPLE_EVERY_S = 5.0
_QUIET_LIMIT_S = 20.0
_COUNTS = {Role.ADMISSION: 1, Role.ROUTER: 1, Role.PREFILL: 1, Role.DECODE: 2}
_SIMULATED_PROMPTS = (32, 128, 512, 1024)
_SIMULATED_ANSWER = 400


@dataclass(slots=True)
class Growth:
    """Resident memory and open descriptors of each process over time."""

    rss_bytes: dict[str, list[int]] = field(default_factory=dict)
    descriptors: dict[str, list[int]] = field(default_factory=dict)

    def sample(self, fleet: Fleet) -> None:
        """Looks at every process once."""
        for member in fleet.members.values():
            process = psutil.Process(member.pid)
            self.rss_bytes.setdefault(member.name, []).append(process.memory_info().rss)
            self.descriptors.setdefault(member.name, []).append(process.num_fds())

    def of(self, series: dict[str, list[int]]) -> dict[str, int]:
        """Returns by how much each process grew since its warm-up; medians of three samples."""
        grown = {}
        for name, values in series.items():
            first = int(_WARM_UP_SHARE * len(values))
            early, late = sorted(values[first : first + 3]), sorted(values[-3:])
            grown[name] = late[len(late) // 2] - early[len(early) // 2]
        return grown


def main(
    minutes: Annotated[float, typer.Option(help="How long to run.")] = 5.0,
    streams: Annotated[int, typer.Option(min=1, help="Streams at any time.")] = 16,
    engine: Annotated[str, typer.Option(help="torch or simulated.")] = "torch",
    seed: Annotated[int, typer.Option(help="Decides the traffic.")] = 1,
    record: Annotated[bool, typer.Option(help="Keep the report in bench/results.")] = False,
) -> None:
    """Keep the mesh busy for long and say whether it stays as it was."""
    run_dir = Path(tempfile.mkdtemp(prefix="baton-soak-"))
    note(f"logs in {run_dir}")
    figures, details = asyncio.run(_soak(minutes * 60, streams, engine, seed, run_dir))
    emit("soak" if engine == "torch" else "soak-simulated", figures, details, record)
    raise typer.Exit(1 if figures["errors"] else 0)


async def _soak(
    seconds: float, streams: int, engine: str, seed: int, run_dir: Path
) -> tuple[dict[str, float | None], dict[str, Any]]:
    tally, growth = Tally(), Growth()
    with OtlpReceiver() as otlp:
        environ = {
            "BATON_MESH__OTLP_ENDPOINT": otlp.endpoint,
            "OTEL_TRACES_SAMPLER": "always_off",
            "BATON_ENGINE__KIND": engine,
            "BATON_QOS__ENABLE_EARLY_REJECTION": "false",
        }
        async with Fleet(run_dir, environ, _COUNTS) as fleet:
            addresses = [router.address for router in fleet.of(Role.ROUTER)]
            traffic = Traffic(addresses, _questions(engine, seed), random.Random(seed), tally)
            traffic.start(streams)
            await _sample_for(seconds, fleet, growth, tally)
            await traffic.stop()
            leaks = await _settle(fleet)
        stalls = _longest_stalls_ms(otlp)
    rss, descriptors = growth.of(growth.rss_bytes), growth.of(growth.descriptors)
    errors = tally.requests - tally.endings[Ending.RIGHT] - tally.endings[Ending.CANCELLED]
    figures: dict[str, float | None] = {
        "requests": tally.requests,
        "rss_growth_mb": max(rss.values()) / 2**20,
        "fd_growth": max(descriptors.values()),
        "loop_stall_max_ms": max(stalls.values(), default=None),
        "errors": errors + bool(leaks),
    }
    details = {
        "minutes": seconds / 60,
        "streams": streams,
        "rss_growth_mb": {name: round(value / 2**20, 1) for name, value in rss.items()},
        "fd_growth": descriptors,
        "loop_stall_max_ms": stalls,
        "endings": {ending.value: count for ending, count in tally.endings.items()},
        "typed_errors": dict(tally.errors),
        "broken": tally.details[:20],
        "leaks": str(leaks),
    }
    return figures, details


def _questions(engine: str, seed: int) -> list[Question]:
    if engine == "torch":
        return make_questions(seed, Path(".baton") / "chaos")
    rng = random.Random(seed)
    spec = load_spec(DEFAULT_MODEL)
    found = []
    for length in _SIMULATED_PROMPTS * 8:
        ids = tuple(rng.randrange(300, 4000) for _ in range(length))
        tokens = answer(ids, _SIMULATED_ANSWER, spec.vocab_size, spec.eos_ids)
        found.append(Question(ids, tuple(tokens)))
    return found


async def _sample_for(seconds: float, fleet: Fleet, growth: Growth, tally: Tally) -> None:
    ends_s = time.monotonic() + seconds
    while (left_s := ends_s - time.monotonic()) > 0:
        await asyncio.sleep(min(_SAMPLE_EVERY_S, left_s))
        growth.sample(fleet)
        note(f"{left_s:6.0f} s left, {tally.requests} requests ended {dict(tally.errors)}")


async def _settle(fleet: Fleet) -> Any:
    deadline_s = time.monotonic() + _QUIET_LIMIT_S
    while (leaks := await look(fleet)) and time.monotonic() < deadline_s:
        await asyncio.sleep(0.1)
    return leaks


def _longest_stalls_ms(otlp: OtlpReceiver) -> dict[str, float]:
    """Returns the longest stall of each process, by the service's name."""
    longest: dict[str, float] = {}
    for service, metric in otlp.metrics_by_service:
        if metric.name == LOOP_STALL.name:
            for point in metric.histogram.data_points:
                longest[service] = max(longest.get(service, 0.0), point.max * 1e3)
    return {name: round(value, 1) for name, value in longest.items()}


if __name__ == "__main__":
    typer.run(main)
