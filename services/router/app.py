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
from baton.requests import Priority
from baton.rpc.link import LinkPool
from baton.rpc.links import ADMISSION_LINK, DECODE_LINK
from baton.rpc.pace import Pace
from baton.rpc.server import Listening, ServiceServer
from baton.rpc.worker_info import LONGEST_AGE_S
from baton.state.background import running
from baton.state.finished import FinishedLog, FinishedRequest, coarse
from baton.state.fleet import FleetView
from baton.state.index_reader import IndexReader
from baton.state.prefix_index import PrefixIndex
from baton.state.records import WorkerRecord, WorkerRole, new_incarnation
from baton.state.registry import Registration
from baton.state.shared_credits import CreditExchange
from baton.state.traffic import TrafficMeter
from baton.telemetry.names import STATE_AGE, WORKERS
from baton.telemetry.providers import Telemetry
from baton.v1 import router_pb2_grpc
from services.router.access import Access
from services.router.candidates import Candidates
from services.router.choice import make_policy
from services.router.credits import FleetCredits, InFlightCredits, Suspects
from services.router.dispatch import Dispatcher
from services.router.explanations import Explanations
from services.router.metrics import RouterMetrics, worker_states
from services.router.model import ServedModel
from services.router.permits import PermitClient
from services.router.pipeline import Pipeline
from services.router.promises import watch_promises
from services.router.requests import RequestBook, RequestRecord, Targets
from services.router.server import SERVICE, RouterServer
from services.router.sessions import Sessions

__all__ = ["RouterApp", "make_policy", "running_router"]

logger = logging.getLogger(__name__)

DRAIN_GRACE_S = 10.0
SUSPECT_S = 3.0
"""A worker that failed a request is avoided this long: its lease may outlive it by as much."""

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
    fleet, index = FleetView(redis), PrefixIndex()
    credits, suspects = InFlightCredits(), Suspects(SUSPECT_S)
    exchange = CreditExchange(redis, new_incarnation(), credits.recent)
    candidates = Candidates(fleet, index, FleetCredits(credits, exchange), suspects, model)
    pace = Pace()
    admission_links: LinkPool[Any, Any] = LinkPool(ADMISSION_LINK, pace=pace)
    decode_links: LinkPool[Any, Any] = LinkPool(DECODE_LINK, pace=pace)
    closed = [Priority[name.upper()] for name in config.qos.fail_closed]
    permits = PermitClient(fleet, admission_links, closed)
    explanations = Explanations()
    qos = config.qos
    finished = FinishedLog(redis)
    book = RequestBook(
        Targets(qos.ttft_slo_ms / 1000, qos.tpot_slo_ms / 1000),
        on_served=lambda record: finished.add(_finished(record, candidates.block_size)),
        tenants=qos.tenants,
    )
    threshold = config.split_policy.prompt_length_threshold
    traffic = TrafficMeter(threshold, lambda: book.waiting)
    metrics = RouterMetrics(telemetry, model.name, explanations, book, traffic)
    dispatcher = Dispatcher(
        candidates=candidates,
        policy=make_policy(
            config.split_policy,
            config.cache.min_cache_hit_ratio,
            config.qos,
        ),
        links=decode_links,
        credits=credits,
        suspects=suspects,
        telemetry=telemetry,
        offload_above_tokens=threshold,
        explanations=explanations,
        sessions=Sessions(),
    )
    watch_promises(telemetry, book.slo, permits)
    pipeline = Pipeline(model, candidates, permits, dispatcher, telemetry, metrics)
    telemetry.gauge(WORKERS, lambda: worker_states(fleet))
    telemetry.gauge(STATE_AGE, lambda: [(min(fleet.age_s, LONGEST_AGE_S), {})])
    server = ServiceServer(
        listening.host,
        listening.port,
        [SERVICE],
        admits_strangers=True,
        shares_port=listening.shares_port,
    )
    servicer = RouterServer(
        pipeline,
        fleet,
        candidates,
        model,
        metrics,
        explanations,
        pace,
        book,
        access or Access(),
        permits,
    )
    router_pb2_grpc.add_RouterServiceServicer_to_server(servicer, server.grpc)
    async with AsyncExitStack() as stack:
        for links in (admission_links, decode_links):
            stack.push_async_callback(links.close)
            await stack.enter_async_context(running(_close_idle(links)))
        await stack.enter_async_context(running(fleet.run()))
        await stack.enter_async_context(running(IndexReader(redis, fleet, index).run()))
        await stack.enter_async_context(running(exchange.run()))
        await stack.enter_async_context(running(finished.run()))
        await fleet.wait_synced()
        await server.start()
        stack.push_async_callback(server.drain, DRAIN_GRACE_S)
        address = server.advertised(listening.advertise)
        registration = Registration(redis, _record(listening, address, model.name))
        await stack.enter_async_context(registration)
        publishing = traffic.publish(redis, registration.record.incarnation)
        await stack.enter_async_context(running(publishing))
        await stack.enter_async_context(running(_watch(fleet, candidates, server)))
        yield RouterApp(address, registration, fleet, index, permits, credits, metrics)


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


def _finished(record: RequestRecord, block_size: int) -> FinishedRequest:
    generation = record.generation
    assert generation is not None
    return FinishedRequest(
        record.arrived_at_s,
        len(generation.input_ids),
        len(generation.tokens),
        coarse(generation.hashes, block_size),
    )


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
