"""Hundreds of simulated workers in one process, each with the host that a worker process runs.

They share the reading of the fleet: each worker's own would cost the square of their number.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from redis.asyncio import Redis

from baton.config import Config
from baton.engine.simulated import SimulatedEngine, SimulatedOptions
from baton.kv.simulated import SimulatedTransport
from baton.state.connect import connect
from baton.state.fleet import FleetView
from baton.state.records import WorkerRole, new_incarnation
from baton.telemetry.providers import Telemetry
from baton.worker.host import WorkerHost, WorkerIdentity
from baton.worker.parts import RoleService, WorkerParts
from services.decode.main import build_service as build_decode
from services.prefill.main import build_service as build_prefill

_HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all workers of the process share.

    Where nobody runs `fleet`, pairs of workers are made by the first request that needs one,
    instead of all with all at the start.
    """

    fleet: FleetView
    config: Config
    telemetry: Telemetry
    options: SimulatedOptions
    transfer_costs: tuple[float, float]


@dataclass(frozen=True, slots=True)
class FleetSize:
    """How many workers of each role; `prefix` starts their names."""

    prefill: int
    decode: int
    prefix: str = "sim"


class BorrowedFleet(FleetView):
    """A view of the fleet that somebody else reads."""

    def __init__(self, redis: Redis, reader: FleetView) -> None:
        super().__init__(redis)
        self._members = reader._members

    async def run(self) -> None:
        """Leaves the reading to the one who was lent from."""
        await asyncio.Event().wait()

    async def wait_synced(self, timeout_s: float = 5.0) -> None:
        """Waits for nothing: where nobody reads, pairs are made when they are needed."""


@asynccontextmanager
async def running_workers(
    around: Surroundings, size: FleetSize
) -> AsyncIterator[list[SimulatedEngine]]:
    """Runs a fleet; yields its engines when all workers are ready. Leaving stops them all."""
    roles = [(WorkerRole.PREFILL, size.prefill), (WorkerRole.DECODE, size.decode)]
    engines: list[SimulatedEngine] = []
    stop = asyncio.Event()
    async with AsyncExitStack() as stack:
        for role, count in roles:
            for number in range(count):
                name = f"{size.prefix}-{role.value}-{number:03d}"
                worker = _running_worker(around, role, name, stop)
                engines.append(await stack.enter_async_context(worker))
        try:
            yield engines
        finally:
            stop.set()  # all at once; the stack waits for them one by one


@asynccontextmanager
async def _running_worker(
    around: Surroundings, role: WorkerRole, worker_id: str, stop: asyncio.Event
) -> AsyncIterator[SimulatedEngine]:
    incarnation = new_incarnation()
    engine = SimulatedEngine(around.options)
    host = WorkerHost(
        WorkerIdentity(worker_id, incarnation, role, _HOST, 0),
        around.config,
        engine,
        SimulatedTransport(incarnation, around.transfer_costs),
        around.telemetry,
        _builder(role),
        partial(BorrowedFleet, reader=around.fleet),
    )
    redis = connect(around.config.mesh.redis_url)
    async with aclosing(redis), asyncio.TaskGroup() as tasks:
        work = tasks.create_task(host.run(redis, stop))
        ready = tasks.create_task(host.is_ready.wait())
        await asyncio.wait((work, ready), return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        try:
            if not work.done():
                yield engine
        finally:
            stop.set()


def _builder(role: WorkerRole) -> Callable[[WorkerParts], RoleService]:
    return build_prefill if role is WorkerRole.PREFILL else build_decode
