"""The autoscaler put together: everything that runs in its process."""

import logging
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
from baton.state.traffic import TrafficReader
from baton.telemetry.providers import Telemetry
from baton.v1 import autoscaler_pb2_grpc
from services.autoscaler.bursts import MEMORY_S
from services.autoscaler.leader import Leadership
from services.autoscaler.metrics import AutoscalerMetrics
from services.autoscaler.observer import Observer
from services.autoscaler.orchestrators.base import Orchestrator
from services.autoscaler.overrides import Overrides
from services.autoscaler.policy import ScalingPolicy, ThresholdPolicy, Thresholds
from services.autoscaler.scaler import Scaler
from services.autoscaler.server import SERVICE, AutoscalerServer
from services.autoscaler.sizing import Slo
from services.autoscaler.slo_policy import SloPolicy, SloSettings
from services.autoscaler.state import Bounds

logger = logging.getLogger(__name__)

PERCENT = 100.0


@dataclass(frozen=True, slots=True)
class Pacing:
    """How often it looks and how it moves, in seconds; `budget` workers at most, None for the
    largest sizes of both pools together.
    """

    interval_s: float = 5.0
    hold_s: float = 90.0
    learn_s: float = 900.0
    start_s: float = 30.0
    burst_memory_s: float = MEMORY_S
    budget: int | None = None


@dataclass(frozen=True, slots=True)
class AutoscalerApp:
    """A running autoscaler."""

    address: str
    registration: Registration
    scaler: Scaler


def make_policy(config: Config, pacing: Pacing, *, flips: bool = False) -> ScalingPolicy:
    """Returns the configured policy. `flips` says whether workers can change their role."""
    pools = config.autoscale
    prefill, decode = (
        Bounds(pool.min_replicas, pool.max_replicas) for pool in (pools.prefill, pools.decode)
    )
    if pools.policy == "thresholds":
        return ThresholdPolicy(
            Thresholds(
                prefill,
                pools.prefill.scale_up.queue_length,
                pools.prefill.scale_down.queue_length,
                pools.prefill.scale_up.gpu_utilization / PERCENT,
                pools.prefill.scale_down.gpu_utilization / PERCENT,
            ),
            Thresholds(
                decode,
                pools.decode.scale_up.queue_length,
                pools.decode.scale_down.queue_length,
                pools.decode.scale_up.kv_cache_usage / PERCENT,
                pools.decode.scale_down.kv_cache_usage / PERCENT,
            ),
        )
    qos = config.qos
    budget = prefill.maximum + decode.maximum if pacing.budget is None else pacing.budget
    return SloPolicy(
        SloSettings(
            Slo(qos.ttft_slo_ms / 1e3, qos.tpot_slo_ms / 1e3),
            prefill,
            decode,
            budget,
            hold_s=pacing.hold_s,
            learn_s=pacing.learn_s,
            start_s=pacing.start_s,
            burst_memory_s=pacing.burst_memory_s,
            flips=flips,
        )
    )


@asynccontextmanager
async def running_autoscaler(
    config: Config,
    listening: Listening,
    redis: Redis,
    telemetry: Telemetry,
    orchestrator: Orchestrator,
    pacing: Pacing,
) -> AsyncIterator[AutoscalerApp]:
    """Runs an autoscaler; leaving gives the lease up and stops it, and changes no pool.

    Raises StartupError when the port is taken or the registry cannot be read.
    """
    incarnation = new_incarnation()
    name = listening.name or f"autoscaler-{socket.gethostname()}-{incarnation[:4]}"
    fleet = FleetView(redis)
    overrides = Overrides(redis)
    observer = Observer(fleet, TrafficReader(redis), orchestrator)
    scaler = Scaler(
        observer,
        make_policy(config, pacing, flips=orchestrator.moves),
        orchestrator,
        Leadership(redis, f"{name}/{incarnation}"),
        overrides,
        AutoscalerMetrics(telemetry),
        pacing.interval_s,
    )
    server = ServiceServer(listening.host, listening.port, [SERVICE], admits_strangers=True)
    servicer = AutoscalerServer(scaler, observer, overrides)
    autoscaler_pb2_grpc.add_AutoscalerServiceServicer_to_server(servicer, server.grpc)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(orchestrator.close)
        await stack.enter_async_context(running(fleet.run()))
        await fleet.wait_synced()
        await server.start()
        stack.push_async_callback(server.drain, 1.0)
        address = server.advertised(listening.advertise)
        record = WorkerRecord(name, incarnation, WorkerRole.AUTOSCALER, address, time.time())
        registration = Registration(redis, record)
        await stack.enter_async_context(registration)
        await stack.enter_async_context(running(scaler.run()))
        await server.set_ready(True)
        yield AutoscalerApp(address, registration, scaler)
