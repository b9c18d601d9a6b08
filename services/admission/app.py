"""Admission put together: everything that runs in its process, in the order it starts and ends."""

import asyncio
import logging
import random
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from redis.asyncio import Redis

from baton.config import Config
from baton.rpc.server import Listening, ServiceServer
from baton.state.background import running
from baton.state.fleet import FleetView
from baton.state.records import WorkerRecord, WorkerRole, new_incarnation
from baton.state.registry import Registration
from baton.telemetry.providers import Telemetry
from baton.v1 import admission_pb2_grpc
from services.admission.choice import make_door
from services.admission.desk import PermitDesk
from services.admission.pools import pools_of
from services.admission.replicas import Replicas
from services.admission.server import SERVICE, AdmissionServer

logger = logging.getLogger(__name__)

DRAIN_GRACE_S = 10.0
COUNT_WORKERS_EVERY_S = 0.5
"""Joins and leaves are seen at once; that a worker began to drain only by its figures."""


@dataclass(frozen=True, slots=True)
class AdmissionApp:
    """A running admission service."""

    address: str
    registration: Registration
    desk: PermitDesk


@asynccontextmanager
async def running_admission(
    config: Config, listening: Listening, redis: Redis, telemetry: Telemetry
) -> AsyncIterator[AdmissionApp]:
    """Runs admission; leaving takes it out of the registry, drains it and stops it.

    Raises StartupError when the port is taken or the registry cannot be read.
    """
    fleet = FleetView(redis)
    # Jitter must differ from process to process, so the seed is the operating system's.
    desk = PermitDesk(make_door(config.qos, random.Random()))  # noqa: S311 - not for secrets
    server = ServiceServer(listening.host, listening.port, [SERVICE])
    servicer = AdmissionServer(desk, telemetry)
    admission_pb2_grpc.add_AdmissionServiceServicer_to_server(servicer, server.grpc)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(running(fleet.run()))
        await fleet.wait_synced()
        desk.set_pools(pools_of(fleet))
        await stack.enter_async_context(running(_follow(fleet, desk)))
        await stack.enter_async_context(running(desk.run()))
        replicas = Replicas(redis, new_incarnation(), desk)
        await replicas.exchange_or_go_on()
        await stack.enter_async_context(replicas.taking_part())
        await server.start()
        stack.push_async_callback(_drain, desk, server)
        address = server.advertised(listening.advertise)
        registration = Registration(redis, _record(listening, address))
        await stack.enter_async_context(registration)
        await server.set_ready(True)
        yield AdmissionApp(address, registration, desk)


async def _drain(desk: PermitDesk, server: ServiceServer) -> None:
    """Lets permits end by themselves; links stay open for good, so they are cut after that."""
    try:
        async with asyncio.timeout(DRAIN_GRACE_S):
            await desk.wait_empty()
    except TimeoutError:
        logger.warning("admission stops with live permits")
    await server.drain(0)


async def _follow(fleet: FleetView, desk: PermitDesk) -> None:
    generation = fleet.generation
    while True:
        try:
            async with asyncio.timeout(COUNT_WORKERS_EVERY_S):
                generation = await fleet.wait_change(generation)
        except TimeoutError:
            pass
        desk.set_pools(pools_of(fleet))


def _record(listening: Listening, address: str) -> WorkerRecord:
    port = address.rpartition(":")[2]
    return WorkerRecord(
        worker_id=listening.name or f"admission-{socket.gethostname()}-{port}",
        incarnation=new_incarnation(),
        role=WorkerRole.ADMISSION,
        address=address,
        started_at_s=time.time(),
    )
