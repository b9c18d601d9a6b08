"""A long run of many streams with random cancels: what grows, what stalls, what fails.

`python -m tests.chaos.soak --minutes N --streams N --engine torch|simulated`
"""

import asyncio
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import grpc
import psutil
import typer

from baton.engine.simulated.spec import load_spec
from baton.engine.simulated.tokens import answer
from baton.local.roles import Role
from baton.models import DEFAULT_MODEL
from baton.v1 import router_pb2, router_pb2_grpc
from bench.drive import percentiles_ms
from bench.report import emit, note
from tests.chaos.fleet import START_TIMEOUT_S, Fleet
from tests.chaos.observer import Leaks, look
from tests.chaos.questions import make_questions
from tests.chaos.stalls import Points, latest_points, longest_ms
from tests.chaos.traffic import Ending, Question, Tally, Traffic
from tests.support.otlp import OtlpReceiver
from tests.support.waiting import eventually

_WARM_UP_SHARE = 0.2
"""Memory is compared between the end of this part of the run and the end of all of it."""

_MOST = {"rss_growth_mb": 32.0, "fd_growth": 32.0, "errors": 0.0}
"""What may be there at the end; stalls are measured, for a busy machine makes them too."""

_SAMPLE_EVERY_S = 5.0
_QUIET_LIMIT_S = 20.0
_EXPORTED_S = 6.0
"""After so long everything that happened until then has been exported."""
_FRONT = {Role.ADMISSION: 1, Role.ROUTER: 1}
_COUNTS = {**_FRONT, Role.PREFILL: 1, Role.DECODE: 2}
_START_OVER_S = 10.0
_SIMULATED_PROMPTS = (32, 128, 512, 1024)
_SIMULATED_ANSWER = 64
_PREFILL, _DECODE = 2, 16
_STEP_MS = 250
_SIMULATED_WORKERS = (
    *(sys.executable, "-m", "bench.fleet", "--prefill", str(_PREFILL), "--decode", str(_DECODE)),
    *("--kv-mib", "1024", "--step-ms", str(_STEP_MS)),
)
"""Sixteen workers stream to 64 each, which is what admission gives them at once; 1,000 streams get
4,000 tokens a second, each in a message of its own."""

_SIMULATED_TARGETS = {
    "BATON_QOS__TTFT_SLO_MS": "5000",
    "BATON_QOS__TPOT_SLO_MS": str(4 * _STEP_MS),
}
"""Targets that such workers can meet."""


@dataclass(slots=True)
class Growth:
    """Resident memory and open descriptors of each process over time."""

    rss_bytes: dict[str, list[int]] = field(default_factory=dict)
    descriptors: dict[str, list[int]] = field(default_factory=dict)

    def sample(self, pids: dict[str, int]) -> None:
        """Looks at every process once."""
        for name, pid in pids.items():
            process = psutil.Process(pid)
            self.rss_bytes.setdefault(name, []).append(process.memory_info().rss)
            self.descriptors.setdefault(name, []).append(process.num_fds())

    def rss(self) -> dict[str, int]:
        """Returns by how many bytes each process grew since its warm-up."""
        return _grown(self.rss_bytes)

    def fds(self) -> dict[str, int]:
        """Returns how many descriptors more each process holds than after its warm-up."""
        return _grown(self.descriptors)


@dataclass(frozen=True, slots=True)
class Load:
    """What the mesh is kept busy with."""

    seconds: float
    streams: int
    engine: str
    seed: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of it; stalls are the longest of each process, under load and since its start."""

    tally: Tally
    growth: Growth
    leaks: Leaks
    stalls_ms: dict[str, float]
    stalls_since_start_ms: dict[str, float]


def _grown(series: dict[str, list[int]]) -> dict[str, int]:
    """Compares medians of three samples, for a single one may be taken in the midst of a burst."""
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
    seen = asyncio.run(_soak(Load(minutes * 60, streams, engine, seed), run_dir))
    tally, growth = seen.tally, seen.growth
    figures = _figures(seen)
    details = {
        "minutes": minutes,
        "streams": streams,
        "ttft_ms": percentiles_ms(tally.ttft_s),
        "tpot_ms": percentiles_ms(tally.tpot_s),
        "rss_growth_mb": {name: round(it / 2**20, 1) for name, it in growth.rss().items()},
        "fd_growth": growth.fds(),
        "loop_stall_max_ms": seen.stalls_ms,
        "loop_stall_max_ms_since_start": seen.stalls_since_start_ms,
        "endings": {ending.value: count for ending, count in tally.endings.items()},
        "typed_errors": dict(tally.errors),
        "broken": tally.details[:20],
        "leaks": str(seen.leaks),
    }
    for name, value in details.items():
        print(f"  {name:20} {value}")
    emit("soak" if engine == "torch" else "soak-simulated", figures, details, record)
    raise typer.Exit(1 if _faults(figures) else 0)


async def _soak(load: Load, run_dir: Path) -> Seen:
    tally, growth = Tally(), Growth()
    with OtlpReceiver() as otlp:
        leaks, before = await _run(load, run_dir, otlp, tally, growth)
        after = latest_points(otlp.metrics_by_service)
        return Seen(tally, growth, leaks, longest_ms(before, after), longest_ms({}, after))


async def _run(
    load: Load, run_dir: Path, otlp: OtlpReceiver, tally: Tally, growth: Growth
) -> tuple[Leaks, Points]:
    """Returns what leaked, and the stalls of the time before the load."""
    environ = {
        "BATON_MESH__OTLP_ENDPOINT": otlp.endpoint,
        "OTEL_TRACES_SAMPLER": "always_off",
        "BATON_ENGINE__KIND": load.engine,
        "BATON_QOS__ENABLE_EARLY_REJECTION": "false",
    }
    is_simulated = load.engine == "simulated"
    if is_simulated:
        environ |= _SIMULATED_TARGETS
    counts, beside = (_FRONT, _SIMULATED_WORKERS) if is_simulated else (_COUNTS, ())
    async with Fleet(run_dir, environ, counts, beside=beside) as fleet:
        if is_simulated:
            await eventually(lambda: _sees_all_workers(fleet), START_TIMEOUT_S)
        addresses = [router.address for router in fleet.of(Role.ROUTER)]
        questions = _questions(load)
        await asyncio.sleep(_EXPORTED_S)
        before = latest_points(list(otlp.metrics_by_service))
        traffic = Traffic(addresses, questions, random.Random(load.seed), tally)
        traffic.start(load.streams, min(_START_OVER_S, load.seconds / 4))
        await _sample_for(load.seconds, fleet.pids, growth, tally)
        await traffic.stop()
        return await _settle(fleet), before


def _figures(seen: Seen) -> dict[str, float | None]:
    tally, growth = seen.tally, seen.growth
    errors = tally.requests - tally.endings[Ending.RIGHT] - tally.endings[Ending.CANCELLED]
    return {
        "requests": tally.requests,
        "rss_growth_mb": max(growth.rss().values()) / 2**20,
        "fd_growth": max(growth.fds().values()),
        "loop_stall_max_ms": max(seen.stalls_ms.values(), default=None),
        "errors": errors + bool(seen.leaks),
    }


def _faults(figures: dict[str, float | None]) -> list[str]:
    """Returns the names of the figures that say that the mesh did not stay as it was."""
    return [name for name, most in _MOST.items() if (figures[name] or 0) > most]


def _questions(load: Load) -> list[Question]:
    if load.engine == "torch":
        return make_questions(load.seed, Path(".baton") / "chaos")
    rng = random.Random(load.seed)
    spec = load_spec(DEFAULT_MODEL)
    found = []
    for length in _SIMULATED_PROMPTS * 8:
        ids = tuple(rng.randrange(300, 4000) for _ in range(length))
        tokens = answer(ids, _SIMULATED_ANSWER, spec.vocab_size, spec.eos_ids)
        found.append(Question(ids, tuple(tokens)))
    return found


async def _sees_all_workers(fleet: Fleet) -> bool:
    async with grpc.aio.insecure_channel(fleet.of(Role.ROUTER)[0].address) as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)
        answer = await stub.GetFleet(router_pb2.GetFleetRequest(), timeout=5)
    return sum(worker.HasField("stats") for worker in answer.workers) >= _PREFILL + _DECODE


async def _sample_for(seconds: float, pids: dict[str, int], growth: Growth, tally: Tally) -> None:
    ends_s = time.monotonic() + seconds
    while (left_s := ends_s - time.monotonic()) > 0:
        await asyncio.sleep(min(_SAMPLE_EVERY_S, left_s))
        growth.sample(pids)
        note(f"{left_s:6.0f} s left, {tally.requests} requests ended {dict(tally.errors)}")


async def _settle(fleet: Fleet) -> Leaks:
    deadline_s = time.monotonic() + _QUIET_LIMIT_S
    while (leaks := await look(fleet)) and time.monotonic() < deadline_s:
        await asyncio.sleep(0.1)
    return leaks


if __name__ == "__main__":
    typer.run(main)
