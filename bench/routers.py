"""`make bench-routers`: do several routers act as one, does anything leak, how fast does all heal.

Simulated workers in one process. Imbalance: router processes share a load; the busiest decode
worker's outstanding requests over the mean, averaged over time. The rest is looked at from within
a router that runs in this process: credits that a killed neighbour leaves, credits and permits
after requests of which half are cancelled at random, and the time from the return of a Redis that
lost everything until a reader that knows nothing sees every worker and the blocks they hold.
"""

import asyncio
import contextlib
import itertools
import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from baton.client import Completion, Prompt, RequestOptions, RouterClient
from baton.config import load_config
from baton.errors import BatonError
from baton.local.child import Child
from baton.ports import free_port
from baton.requests import SamplingParams
from baton.rpc.server import Listening
from baton.state.background import running
from baton.state.connect import connect
from baton.state.embedded import EmbeddedRedis, start_embedded
from baton.state.fleet import FleetView
from baton.state.index_reader import IndexReader
from baton.state.prefix_index import PrefixIndex
from baton.state.records import WorkerRole
from baton.state.shared_credits import CreditExchange
from baton.telemetry.providers import start_telemetry
from bench.children import module, running_child, wait_for_line
from bench.prompts import PromptPlan
from bench.report import emit, note
from services.router.app import RouterApp, running_router
from services.router.model import load_served_model

_HOST = "127.0.0.1"
_DECODE = 8
_SAMPLE_S = 0.05
_WAIT_S = 60.0
_OPEN = {"BATON_QOS__ENABLE_EARLY_REJECTION": "false"}


@dataclass(frozen=True, slots=True)
class Served:
    """One request: when it was under way, and on which decode worker."""

    began_s: float
    ended_s: float
    worker_id: str


@dataclass(frozen=True, slots=True)
class Ground:
    """What all parts stand on: a Redis and the simulated workers."""

    redis: EmbeddedRedis
    directory: Path

    @property
    def environ(self) -> dict[str, str]:
        """For the processes."""
        return {**_OPEN, "REDIS_URL": self.redis.url}


@asynccontextmanager
async def running_ground(directory: Path, step_ms: float) -> AsyncIterator[Ground]:
    """Runs Redis, the workers and admission."""
    async with AsyncExitStack() as stack:
        redis = start_embedded(directory / "redis")
        stack.callback(redis.stop)
        ground = Ground(redis, directory)
        options = ("--prefill", "0", "--decode", str(_DECODE), "--step-ms", str(step_ms))
        command = module("bench.fleet", "--redis-url", redis.url, *options)
        fleet = await stack.enter_async_context(
            running_child("fleet", [*command, "--prefill-token-us", "50"], directory)
        )
        await wait_for_line(fleet, '{"redis_url"')
        command = module("services.admission.main", "--name", "admission-0")
        await stack.enter_async_context(
            running_child("admission", command, directory, ground.environ)
        )
        yield ground


@asynccontextmanager
async def router_process(ground: Ground, name: str) -> AsyncIterator[tuple[RouterClient, Child]]:
    """Runs a router process; yields it with a client once it sees all workers."""
    port = free_port(_HOST)
    command = module("services.router.main", "--port", str(port), "--name", name)
    async with (
        running_child(name, command, ground.directory, ground.environ) as child,
        RouterClient(f"{_HOST}:{port}") as client,
    ):
        await until(lambda: _sees_all(client))
        yield client, child


@asynccontextmanager
async def router_here(ground: Ground) -> AsyncIterator[tuple[RouterClient, RouterApp]]:
    """Runs a router in this process."""
    redis = connect(ground.redis.url)
    telemetry = start_telemetry("baton-bench", "bench", "")
    config = load_config(environ=ground.environ)
    model = load_served_model(config.model)
    listening = Listening(_HOST, 0, "router-here")
    try:
        async with (
            running_router(config, listening, model, redis, telemetry) as app,
            RouterClient(app.address) as client,
        ):
            await until(lambda: _sees_all(client))
            yield client, app
    finally:
        await redis.aclose()


async def _sees_all(client: RouterClient) -> bool:
    with contextlib.suppress(BatonError):
        return len((await client.fleet()).workers) >= _DECODE
    return False


async def until(is_so: Callable[[], Awaitable[bool]], every_s: float = 0.01) -> float:
    """Returns how long it took until something was so. Raises TimeoutError."""
    began_s = time.monotonic()
    async with asyncio.timeout(_WAIT_S):
        while not await is_so():  # noqa: ASYNC110 - it is looked at from outside
            await asyncio.sleep(every_s)
    return time.monotonic() - began_s


async def ask(client: RouterClient, ids: Sequence[int], tokens: int) -> Served:
    """Runs one request to its end."""
    sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    began_s, worker_id = time.monotonic(), ""
    options = RequestOptions(sampling=sampling, timeout_s=_WAIT_S)
    async for part in client.generate(Prompt(input_ids=tuple(ids)), options):
        if isinstance(part, Completion):
            worker_id = part.decode_worker_id
    return Served(began_s, time.monotonic(), worker_id)


async def measure_imbalance(ground: Ground, routers: int, requests: int, per_s: float) -> float:
    """Returns the busiest worker's outstanding requests over the mean, averaged over time."""
    rng, prompts = random.Random(routers), PromptPlan(64, 32, 0, 1, routers)  # noqa: S311
    async with AsyncExitStack() as stack:
        clients = [
            (await stack.enter_async_context(router_process(ground, f"router-{routers}-{n}")))[0]
            for n in range(routers)
        ]
        tasks = []
        for number, client in zip(range(requests), itertools.cycle(clients), strict=False):
            ids = prompts.ids(number).tolist()
            tasks.append(asyncio.ensure_future(ask(client, ids, rng.choice((16, 32, 64)))))
            await asyncio.sleep(rng.expovariate(per_s))
        return imbalance(await asyncio.gather(*tasks))


def imbalance(served: Sequence[Served]) -> float:
    """Returns max over mean of the workers' outstanding requests, averaged over moments."""
    first, last = min(it.began_s for it in served), max(it.began_s for it in served)
    ratios = []
    for step in range(int((last - first) / _SAMPLE_S)):
        at_s = first + step * _SAMPLE_S
        counts: dict[str, int] = {}
        for it in served:
            if it.began_s <= at_s < it.ended_s:
                counts[it.worker_id] = counts.get(it.worker_id, 0) + 1
        total = sum(counts.values())
        if total >= _DECODE:
            ratios.append(max(counts.values()) * _DECODE / total)
    return statistics.mean(ratios) if ratios else 1.0


async def measure_killed(ground: Ground) -> float:
    """Returns how long the credits of a router that was killed are still seen by the others."""
    redis = connect(ground.redis.url)
    observer = CreditExchange(redis, "observer", lambda _: [])

    async def sees() -> bool:
        return any(observer.unseen(name, 0.0).requests for name in observer.holders)

    async def sees_none() -> bool:
        return not await sees()

    try:
        async with running(observer.run()), router_process(ground, "router-doomed") as (client, it):
            prompts = PromptPlan(64, 16, 0, 1, 77)
            asked = [
                asyncio.ensure_future(ask(client, prompts.ids(number).tolist(), 2000))
                for number in range(40)
            ]
            await until(sees)
            os.kill(it.pid, signal.SIGKILL)
            gone_s = await until(sees_none)
            await asyncio.gather(*asked, return_exceptions=True)
            return gone_s
    finally:
        await redis.aclose()


async def measure_leaks(ground: Ground, requests: int) -> dict[str, int]:
    """Cancels half of the requests at random moments; returns what is still held afterwards."""
    rng, prompts = random.Random(5), PromptPlan(64, 16, 0, 1, 9)  # noqa: S311 - not for secrets
    numbers = iter(range(requests))
    async with router_here(ground) as (client, app):

        async def worker() -> None:
            for number in numbers:
                asked = asyncio.ensure_future(ask(client, prompts.ids(number).tolist(), 16))
                patience_s = rng.random() * 0.2 if rng.random() < 0.5 else _WAIT_S
                await asyncio.wait([asked], timeout=patience_s)
                asked.cancel()
                await asyncio.gather(asked, return_exceptions=True)

        await asyncio.gather(*(worker() for _ in range(48)))

        async def owned() -> int:
            return sum(it.stats.kv_blocks_owned for it in (await client.fleet()).workers)

        async def is_quiet() -> bool:
            return not app.credits.total and not app.metrics.active and not await owned()

        # Workers tell their figures a little later than requests end.
        with contextlib.suppress(TimeoutError):
            await until(is_quiet, every_s=0.1)
        return {
            "credits": app.credits.total,
            "active": app.metrics.active,
            "kv_blocks": await owned(),
        }


async def measure_outage(
    ground: Ground, break_it: Callable[[], Awaitable[None]]
) -> dict[str, float]:
    """Breaks Redis under load; returns failures meanwhile and the time until all is known again."""
    prompts = PromptPlan(256, 16, 0, 1, random.randrange(1 << 20))  # noqa: S311 - not for secrets
    async with router_here(ground) as (client, app):
        for number in range(64):
            await ask(client, prompts.ids(number).tolist(), 4)
        await asyncio.sleep(0.5)
        known, failures, stop = len(app.index), 0, asyncio.Event()

        async def load() -> None:
            nonlocal failures
            for number in itertools.count(1000):
                if stop.is_set():
                    return
                try:
                    await ask(client, prompts.ids(number).tolist(), 4)
                except BatonError:
                    failures += 1

        loading = asyncio.ensure_future(load())
        await break_it()
        heal_s = await _learn_anew(ground, known)
        stop.set()
        await loading
        return {"failures": failures, "heal_s": heal_s, "index_blocks": known}


async def _learn_anew(ground: Ground, blocks: int) -> float:
    """Returns how long a reader that knows nothing takes to see all workers and their blocks."""
    redis = connect(ground.redis.url)
    fleet, index = FleetView(redis), PrefixIndex()

    async def is_whole() -> bool:
        return len(fleet.workers(WorkerRole.DECODE)) == _DECODE and len(index) >= 0.99 * blocks

    try:
        async with running(fleet.run()), running(IndexReader(redis, fleet, index).run()):
            return await until(is_whole)
    finally:
        await redis.aclose()


async def _flush(ground: Ground) -> None:
    redis = connect(ground.redis.url)
    await redis.flushall()
    await redis.aclose()


async def measure(requests: int) -> dict[str, Any]:
    """Runs all parts."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        async with running_ground(directory, step_ms=5.0) as ground:
            for routers in (1, 2, 4):
                value = await measure_imbalance(ground, routers, requests=600, per_s=60.0)
                found[f"imbalance_{routers}"] = value
                note(f"imbalance with {routers} routers: {value:.3f}")
            found["killed_credits_gone_s"] = await measure_killed(ground)
            note(f"credits of a killed router: gone after {found['killed_credits_gone_s']:.2f} s")
            found["leaks"] = await measure_leaks(ground, requests)
            note(f"held after {requests} requests: {found['leaks']}")
            found["flushed"] = await measure_outage(ground, lambda: _flush(ground))
            note(f"Redis flushed: {found['flushed']}")
            found["restarted"] = await _measure_restart(ground, directory)
            note(f"Redis away for 3 s, then empty: {found['restarted']}")
    return found


async def _measure_restart(ground: Ground, directory: Path) -> dict[str, float]:
    again: list[EmbeddedRedis] = []

    async def restart() -> None:
        ground.redis.stop()
        await asyncio.sleep(3.0)
        again.append(start_embedded(directory / "redis", ground.redis.port))

    try:
        return await measure_outage(ground, restart)
    finally:
        for server in again:
            server.stop()


def figures(found: dict[str, Any]) -> dict[str, float | None]:
    """Returns the numbers that the benchmark is about."""
    return {
        **{f"imbalance_{n}": found[f"imbalance_{n}"] for n in (1, 2, 4)},
        "killed_credits_gone_s": found["killed_credits_gone_s"],
        "leaked_credits": found["leaks"]["credits"],
        "leaked_kv_blocks": found["leaks"]["kv_blocks"],
        "flushed_heal_s": found["flushed"]["heal_s"],
        "restarted_heal_s": found["restarted"]["heal_s"],
        "failures_while_away": found["flushed"]["failures"] + found["restarted"]["failures"],
    }


def main() -> None:
    """Runs the command line."""
    typer.run(_command)


def _command(
    requests: Annotated[int, typer.Option(help="Requests of the leak test.")] = 10_000,
    record: Annotated[bool, typer.Option(help="Keep the result in bench/results.")] = False,
) -> None:
    """Measure several routers, leaks and outages."""
    found = asyncio.run(measure(requests))
    emit("bench-routers", figures(found), found, record)


if __name__ == "__main__":
    main()
