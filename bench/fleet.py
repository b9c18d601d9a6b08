"""A fleet of simulated workers in one process: `python -m bench.fleet --workers 256`.

Without --redis-url it starts a Redis of its own. It prints one JSON line when all workers are
ready, then every few seconds what the process costs, and runs until it is told to stop.
"""

import asyncio
import json
import logging
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import psutil
import typer
import uvloop

from baton.collector import quieten_collector
from baton.config import load_config
from baton.engine.simulated import SimulatedEngine, SimulatedOptions, load_spec
from baton.latency import (
    PREFILL_DEFAULTS,
    STEP_DEFAULTS,
    TRANSFER_DEFAULTS,
    OnlineFit,
    WorkerCosts,
)
from baton.rpc.server import stop_signal
from baton.state.background import running
from baton.state.connect import connect, ping_or_fail
from baton.state.embedded import start_embedded
from baton.state.fleet import FleetView
from baton.telemetry.providers import start_telemetry
from bench.workers import FleetSize, Surroundings, running_workers

REPORT_EVERY_S = 5.0
EAGER_PAIRS_UP_TO = 1024
"""With more pairs than this, a pair is made by the first request that needs it."""

_MIB = 1 << 20
_MILLI = 1e-3
_MICRO = 1e-6
_FREE = 1e-12
"""Coefficients must be positive; a picosecond is as good as nothing."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast the simulated workers are; None takes the declared defaults of the cost model.

    `step_s` is a decode step whatever its batch, `prefill_token_s` a prompt token, `transfer_s` a
    KV transfer whatever its size.
    """

    step_s: float | None = None
    prefill_token_s: float | None = None
    transfer_s: float | None = None

    def costs(self) -> WorkerCosts:
        """Returns the costs of computing."""
        prefill, step = PREFILL_DEFAULTS, STEP_DEFAULTS
        if self.prefill_token_s is not None:
            prefill = (_FREE, max(self.prefill_token_s, _FREE), _FREE)
        if self.step_s is not None:
            step = (max(self.step_s, _FREE), _FREE, _FREE)
        return WorkerCosts(OnlineFit(prefill), OnlineFit(step))

    def transfer_costs(self) -> tuple[float, float]:
        """Returns the costs of moving KV."""
        return TRANSFER_DEFAULTS if self.transfer_s is None else (self.transfer_s, 0.0)


@asynccontextmanager
async def running_fleet(
    redis_url: str, size: FleetSize, pace: Pace, model: str, kv_mib: int
) -> AsyncIterator[list[SimulatedEngine]]:
    """Runs a fleet in this process; yields its engines when all workers are ready."""
    # Workers split by the targets that the mesh around them promises.
    config = load_config(environ={**os.environ, "REDIS_URL": redis_url, "BATON_MODEL": model})
    redis = connect(redis_url)
    telemetry = start_telemetry("baton-fleet", size.prefix, "")
    fleet = FleetView(redis)
    options = SimulatedOptions(
        spec=load_spec(model),
        kv_memory_bytes=kv_mib * _MIB,
        block_size=config.cache.block_size,
        token_budget=8192,
        costs=pace.costs(),
    )
    around = Surroundings(fleet, config, telemetry, options, pace.transfer_costs())
    try:
        await ping_or_fail(redis, redis_url)
        is_eager = size.prefill * size.decode <= EAGER_PAIRS_UP_TO
        async with (
            running(fleet.run() if is_eager else _nothing()),
            running_workers(around, size) as engines,
        ):
            yield engines
    finally:
        await redis.aclose()
        telemetry.shutdown()


def main() -> None:
    """Runs the command line."""
    typer.run(_command)


def _command(
    workers: Annotated[int, typer.Option(help="Workers; a quarter computes prompts.")] = 16,
    prefill: Annotated[int | None, typer.Option(help="Prefill workers, instead.")] = None,
    decode: Annotated[int | None, typer.Option(help="Decode workers, instead.")] = None,
    redis_url: Annotated[str, typer.Option(help="Redis of the fleet; empty starts one.")] = "",
    model: Annotated[str, typer.Option(help="Model whose outline is served.")] = "baton-tiny",
    kv_mib: Annotated[int, typer.Option(help="KV pool of each worker. MiB.")] = 256,
    prefix: Annotated[str, typer.Option(help="Start of the workers' names.")] = "sim",
    step_ms: Annotated[float | None, typer.Option(help="Decode step. Milliseconds.")] = None,
    prefill_token_us: Annotated[
        float | None, typer.Option(help="Time per prompt token. Microseconds.")
    ] = None,
    transfer_ms: Annotated[float | None, typer.Option(help="KV transfer. Milliseconds.")] = None,
) -> None:
    """Run simulated workers until told to stop."""
    logging.basicConfig(level=logging.WARNING)
    quarter = max(1, workers // 4)
    size = FleetSize(
        quarter if prefill is None else prefill,
        workers - quarter if decode is None else decode,
        prefix,
    )
    pace = Pace(
        None if step_ms is None else step_ms * _MILLI,
        None if prefill_token_us is None else prefill_token_us * _MICRO,
        None if transfer_ms is None else transfer_ms * _MILLI,
    )
    with ExitStack() as stack:
        if not redis_url:
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            server = start_embedded(Path(directory))
            stack.callback(server.stop)
            redis_url = server.url
        quieten_collector()
        uvloop.run(_serve(redis_url, size, pace, model, kv_mib))


async def _serve(redis_url: str, size: FleetSize, pace: Pace, model: str, kv_mib: int) -> None:
    stop = stop_signal()
    began_s = time.monotonic()
    async with running_fleet(redis_url, size, pace, model, kv_mib) as engines:
        ready = {
            "redis_url": redis_url,
            "prefill": size.prefill,
            "decode": size.decode,
            "start_s": round(time.monotonic() - began_s, 2),
        }
        print(json.dumps(ready), flush=True)
        async with running(_report(engines)):
            await stop.wait()


async def _report(engines: list[SimulatedEngine]) -> None:
    process = psutil.Process()
    process.cpu_percent()
    while True:
        await asyncio.sleep(REPORT_EVERY_S)
        stats = [engine.stats() for engine in engines]
        print(
            f"cpu {process.cpu_percent():.0f} %  memory {process.memory_info().rss / _MIB:.0f} MiB"
            f"  queued {sum(it.queued_requests for it in stats)}"
            f"  prefilling {sum(it.prefilling_requests for it in stats)}"
            f"  decoding {sum(it.decoding_requests for it in stats)}",
            flush=True,
        )


async def _nothing() -> None:
    await asyncio.Event().wait()


if __name__ == "__main__":
    main()
