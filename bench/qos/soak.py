"""`make soak-qos`: random cancels, deadlines and killed admission services leave nothing behind.

A router in this process, so that its credits can be counted, over simulated workers and two
admission services that are killed (SIGKILL) and started again in turn. Afterwards no permit, no
waiting request, no credit and no active request may be left. Ends with 1 when something is.
"""

import asyncio
import contextlib
import itertools
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated

import grpc
import typer

from baton.config import load_config
from baton.local.child import Child
from baton.rpc.channels import open_channel
from baton.rpc.server import Listening
from baton.state.connect import connect
from baton.state.embedded import start_embedded
from baton.state.records import WorkerRole
from baton.telemetry.providers import start_telemetry
from baton.v1 import admission_pb2, admission_pb2_grpc, router_pb2, router_pb2_grpc, types_pb2
from bench.children import module, running_child, wait_for_line
from bench.report import note
from services.router.app import RouterApp, running_router
from services.router.model import load_served_model

_HOST = "127.0.0.1"
_PACE = ("--step-ms", "4", "--prefill-token-us", "50", "--transfer-ms", "1")
_KILL_EVERY_S = 6.0
_SETTLE_S = 20.0


class Crowd:
    """Clients that ask at random, and leave at random."""

    def __init__(self, address: str, seed: int) -> None:
        self.endings: Counter[str] = Counter()
        self._rng = random.Random(seed)  # noqa: S311 - not for secrets
        self._channel = open_channel(address)
        self._stub = router_pb2_grpc.RouterServiceStub(self._channel)

    async def run(self, requests: int, at_once: int) -> None:
        """Sends all requests, so many at once."""
        numbers = iter(range(requests))
        async with asyncio.TaskGroup() as clients:
            for _ in range(at_once):
                clients.create_task(self._client(numbers))
        await self._channel.close()

    async def _client(self, numbers: Iterator[int]) -> None:
        for number in numbers:
            self.endings[await self._ask(number)] += 1

    async def _ask(self, number: int) -> str:
        rng = self._rng
        timeout_s = rng.choice([60.0, 60.0, 60.0, rng.uniform(0.001, 0.5)])
        call = self._stub.Generate(self._request(number), timeout=timeout_s)
        leaves_after = rng.choice([None, None, rng.randint(0, 8)])
        try:
            messages = 0
            async for _ in call:
                messages += 1
                if leaves_after is not None and messages > leaves_after:
                    call.cancel()
                    return "cancelled"
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        return "served"

    def _request(self, number: int) -> router_pb2.GenerateRequest:
        rng = self._rng
        tokens = rng.choice([8, 40, 300, 900])
        sampling = types_pb2.SamplingParams(
            max_tokens=rng.randint(1, 24), temperature=0.0, ignore_eos=True
        )
        return router_pb2.GenerateRequest(
            request_id=f"soak-{number}",
            input_ids=[rng.randrange(1, 4000) for _ in range(tokens)],
            sampling_params=sampling,
            priority=types_pb2.Priority.ValueType(rng.randint(1, 3)),
            tenant=rng.choice(["", "a", "b"]),
        )


class Services:
    """Two admission services, killed and started again in turn."""

    def __init__(self, directory: Path, environ: dict[str, str]) -> None:
        self._directory = directory
        self._environ = environ
        self.kills = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Keeps two services up, each life of one after the other, until told to stop."""
        async with asyncio.TaskGroup() as lives:
            for number in range(2):
                lives.create_task(self._lives(number, stop))

    async def _lives(self, number: int, stop: asyncio.Event) -> None:
        for life in itertools.count():
            name = f"admission-{number}-{life}"
            command = module("services.admission.main", "--name", name)
            async with running_child(name, command, self._directory, self._environ) as child:
                if await _sleeps_through(stop, _KILL_EVERY_S * (1 + number / 2)):
                    self._kill(child)
                else:
                    return

    def _kill(self, child: Child) -> None:
        os.kill(child.pid, signal.SIGKILL)
        self.kills += 1


async def _sleeps_through(stop: asyncio.Event, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
    return not stop.is_set()


async def _left_over(router: RouterApp) -> dict[str, int]:
    left = {"credits": router.credits.total, "active requests": router.metrics.active}
    for view in router.fleet.workers(WorkerRole.ADMISSION):
        async with open_channel(view.record.address) as channel:
            stub = admission_pb2_grpc.AdmissionServiceStub(channel)
            with contextlib.suppress(grpc.aio.AioRpcError):
                request = admission_pb2.AdmissionServiceGetStateRequest()
                state = await stub.GetState(request, timeout=2)
                left[f"{view.record.worker_id} permits"] = (
                    state.prefill_permits + state.decode_permits
                )
                left[f"{view.record.worker_id} queue"] = state.queued_requests
    return {name: count for name, count in left.items() if count}


@contextlib.asynccontextmanager
async def _running(directory: Path, environ: dict[str, str]) -> AsyncIterator[RouterApp]:
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(
            running_child(
                "fleet",
                module(
                    "bench.fleet", "--redis-url", environ["REDIS_URL"],
                    "--prefill", "1", "--decode", "2", *_PACE,
                ),
                directory,
                environ,
            )
        )  # fmt: skip
        await wait_for_line(fleet, '{"redis_url"')
        redis = connect(environ["REDIS_URL"])
        stack.push_async_callback(redis.aclose)
        telemetry = start_telemetry("soak", "soak", "")
        listening = Listening(_HOST, 0, "router-soak")
        config, model = load_config(environ=environ), load_served_model("baton-tiny")
        app = running_router(config, listening, model, redis, telemetry)
        yield await stack.enter_async_context(app)


async def soak(requests: int, at_once: int, seed: int, directory: Path) -> bool:
    """Runs the soak; tells whether nothing was left."""
    redis = start_embedded(directory / "redis")
    environ = {"REDIS_URL": redis.url}
    stop, services = asyncio.Event(), Services(directory, environ)
    try:
        async with _running(directory, environ) as router, asyncio.TaskGroup() as tasks:
            tasks.create_task(services.run(stop))
            while not router.permits.services:  # noqa: ASYNC110 - it sees other processes
                await asyncio.sleep(0.1)
            crowd, began_s = Crowd(router.address, seed), time.monotonic()
            await crowd.run(requests, at_once)
            note(f"{requests} requests in {time.monotonic() - began_s:.0f} s: {crowd.endings}")
            left = await _settled(router)
            note(
                f"admission services killed {services.kills} times, "
                f"{router.permits.failed_open.total()} requests ran without a permit; "
                f"left over: {left or 'nothing'}"
            )
            stop.set()
        return not left
    finally:
        redis.stop()


async def _settled(router: RouterApp) -> dict[str, int]:
    deadline_s = time.monotonic() + _SETTLE_S
    while (left := await _left_over(router)) and time.monotonic() < deadline_s:  # noqa: ASYNC110
        await asyncio.sleep(0.2)
    return left


def main() -> None:
    """Runs the command line."""
    typer.run(_command)


def _command(
    requests: Annotated[int, typer.Option(help="Requests.")] = 10_000,
    at_once: Annotated[int, typer.Option(help="Clients.")] = 96,
    seed: Annotated[int, typer.Option(help="Seed.")] = 1,
) -> None:
    """Soak admission."""
    with tempfile.TemporaryDirectory() as directory:
        clean = asyncio.run(soak(requests, at_once, seed, Path(directory)))
    sys.exit(0 if clean else 1)


if __name__ == "__main__":
    main()
