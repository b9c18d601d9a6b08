"""A mesh of real router and admission processes around simulated workers, for benchmarks."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from baton.ports import free_port
from baton.rpc.channels import open_channel
from baton.state.embedded import start_embedded
from baton.v1 import router_pb2, router_pb2_grpc
from bench.children import (
    START_TIMEOUT_S,
    ChildFailed,
    module,
    running_child,
    wait_for_line,
)

_HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class MeshPlan:
    """What to run; `pace` are options of bench/fleet.py, `settings` environment variables."""

    prefill: int = 2
    decode: int = 4
    pace: tuple[str, ...] = ()
    admission: bool = True
    router_module: str = "services.router.main"
    settings: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Mesh:
    """A running mesh."""

    router_address: str
    router_pid: int
    fleet_pid: int
    redis_url: str


@asynccontextmanager
async def running_mesh(plan: MeshPlan, directory: Path) -> AsyncIterator[Mesh]:
    """Runs a mesh with its logs in `directory`; yields it when the router sees all workers.

    Call it from the main thread. Raises ChildFailed with the end of a log.
    """
    async with AsyncExitStack() as stack:
        redis = start_embedded(directory / "redis")
        stack.callback(redis.stop)
        environ = {**(plan.settings or {}), "REDIS_URL": redis.url}
        fleet = await stack.enter_async_context(
            running_child(
                "fleet",
                module(
                    "bench.fleet",
                    *("--redis-url", redis.url),
                    *("--prefill", str(plan.prefill), "--decode", str(plan.decode)),
                    *plan.pace,
                ),
                directory,
                environ,
            )
        )
        await wait_for_line(fleet, '{"redis_url"')
        if plan.admission:
            command = module("services.admission.main", "--name", "admission-0")
            await stack.enter_async_context(running_child("admission", command, directory, environ))
        port = free_port(_HOST)
        router = await stack.enter_async_context(
            running_child(
                "router",
                module(plan.router_module, "--port", str(port), "--name", "router-0"),
                directory,
                environ,
            )
        )
        address = f"{_HOST}:{port}"
        await wait_for_workers(address, plan.prefill + plan.decode, router.spec.log)
        yield Mesh(address, router.pid, fleet.pid, redis.url)


async def wait_for_workers(
    address: str, workers: int, log: Path, timeout_s: float = START_TIMEOUT_S
) -> None:
    """Returns once the router sees as many workers. Raises ChildFailed after the time."""
    deadline_s = time.monotonic() + timeout_s
    async with open_channel(address) as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)
        while await _workers(stub) < workers:
            if time.monotonic() > deadline_s:
                raise ChildFailed(f"the router does not see {workers} workers; see {log}")
            await asyncio.sleep(0.1)


async def _workers(stub: "router_pb2_grpc.RouterServiceAsyncStub") -> int:
    try:
        fleet = await stub.GetFleet(router_pb2.GetFleetRequest(), timeout=2)
    except grpc.aio.AioRpcError:
        return 0
    return len(fleet.workers)
