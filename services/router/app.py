"""The router put together: everything that runs in its process, in the order it starts and ends."""

import asyncio
import logging
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from baton.config import Config
from baton.rpc.link import LinkPool
from baton.rpc.server import Listening, ServiceServer
from baton.rpc.worker_info import LONGEST_AGE_S
from baton.state.background import running
from baton.state.fleet import FleetView
from baton.state.index_reader import IndexReader
from baton.state.prefix_index import PrefixIndex
from baton.state.records import WorkerRecord, WorkerRole, new_incarnation
from baton.state.registry import Registration
from baton.telemetry.names import STATE_AGE, WORKERS
from baton.telemetry.providers import Telemetry
from baton.v1 import router_pb2_grpc
from services.router.access import Access
from services.router.candidates import Candidates
from services.router.choice import make_policy
from services.router.credits import InFlightCredits
from services.router.metrics import RouterMetrics, worker_states
from services.router.model import ServedModel
from services.router.parts import Parts, Shared, make_parts
from services.router.permits import PermitClient
from services.router.promises import watch_promises
from services.router.server import SERVICE, RouterServer

__all__ = ["RouterApp", "make_policy", "running_router"]

logger = logging.getLogger(__name__)

DRAIN_GRACE_S = 10.0
LINK_CHECK_S = 10.0


@dataclass(frozen=True, slots=True)
class RouterApp:
    """A running router."""

    address: str
    registration: Registration
    fleet: FleetView
    index: PrefixIndex
    permits: PermitClient
    credits: InFlightCredits
    metrics: RouterMetrics


@asynccontextmanager
async def running_router(
    config: Config,
    listening: Listening,
    model: ServedModel,
    redis: Redis,
    telemetry: Telemetry,
    access: Access | None = None,
) -> AsyncIterator[RouterApp]:
    """Runs a router; leaving takes it out of the registry, drains it and stops it.

    Without `access` everybody may call.
    Raises StartupError when the port is taken or the registry cannot be read.
    """
    shared = Shared.of(redis, model)
    parts = make_parts(config, model, redis, telemetry, shared)
    watch_promises(telemetry, parts.book.slo, parts.permits)
    telemetry.gauge(WORKERS, lambda: worker_states(shared.fleet))
    telemetry.gauge(STATE_AGE, lambda: [(min(shared.fleet.age_s, LONGEST_AGE_S), {})])
    server = _server(listening, parts, shared, model, access or Access())
    async with AsyncExitStack() as stack:
        await _start_following(stack, redis, shared, parts)
        await server.start()
        stack.push_async_callback(server.drain, DRAIN_GRACE_S)
        address = server.advertised(listening.advertise)
        registration = Registration(redis, _record(listening, address, model.name))
        await stack.enter_async_context(registration)
        publishing = parts.traffic.publish(redis, registration.record.incarnation)
        await stack.enter_async_context(running(publishing))
        watching = _watch(shared.fleet, shared.candidates, server)
        await stack.enter_async_context(running(watching))
        yield RouterApp(
            address,
            registration,
            shared.fleet,
            shared.index,
            parts.permits,
            shared.credits,
            parts.metrics,
        )


def _server(
    listening: Listening, parts: Parts, shared: Shared, model: ServedModel, access: Access
) -> ServiceServer:
    server = ServiceServer(
        listening.host,
        listening.port,
        [SERVICE],
        admits_strangers=True,
        shares_port=listening.shares_port,
    )
    servicer = RouterServer(
        parts.pipeline,
        shared.fleet,
        shared.candidates,
        model,
        parts.metrics,
        parts.explanations,
        parts.pace,
        parts.book,
        access,
        parts.permits,
    )
    router_pb2_grpc.add_RouterServiceServicer_to_server(servicer, server.grpc)
    return server


async def _start_following(
    stack: AsyncExitStack, redis: Redis, shared: Shared, parts: Parts
) -> None:
    """Follows the fleet until the stack closes; returns once it was read."""
    for links in (parts.admission_links, parts.decode_links):
        stack.push_async_callback(links.close)
        await stack.enter_async_context(running(_close_idle(links)))
    reader = IndexReader(redis, shared.fleet, shared.index)
    for work in (shared.fleet, reader, shared.exchange, parts.finished):
        await stack.enter_async_context(running(work.run()))
    await shared.fleet.wait_synced()


async def _watch(fleet: FleetView, candidates: Candidates, server: ServiceServer) -> None:
    """Says whether requests can be served, at each change of the fleet."""
    generation, was_ready = fleet.generation - 1, None  # the first look comes at once
    while True:
        generation = await fleet.wait_change(generation)
        candidates.warn_misfits()
        is_ready = candidates.has_decode
        if is_ready is not was_ready:
            await server.set_ready(is_ready)
            logger.info("router ready=%s address=%s", is_ready, server.address)
        was_ready = is_ready


async def _close_idle(links: "LinkPool[Any, Any]") -> None:
    while True:
        await asyncio.sleep(LINK_CHECK_S)
        await links.close_idle()


def _record(listening: Listening, address: str, model: str) -> WorkerRecord:
    made_up = f"router-{socket.gethostname()}-{address.rpartition(':')[2]}"
    if listening.shares_port:
        made_up += f"-{os.getpid()}"
    return WorkerRecord(
        worker_id=listening.name or made_up,
        incarnation=new_incarnation(),
        role=WorkerRole.ROUTER,
        address=address,
        started_at_s=time.time(),
        model=model,
    )
