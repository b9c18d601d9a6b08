"""The life of one worker process: port, engine, registration, service, drain, stop."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from redis.asyncio import Redis

from baton.blocks import HASH_SCHEME
from baton.config import Config
from baton.engine.base import Engine
from baton.engine.rooms import as_room_engine
from baton.kv.transfer import KvTransport
from baton.rpc.server import ServiceServer
from baton.rpc.worker_info import worker_info
from baton.state.background import running
from baton.state.connect import REDIS_ERRORS
from baton.state.fleet import FleetView
from baton.state.kv_events import KvEventPublisher
from baton.state.records import WorkerRecord, WorkerRole
from baton.state.registry import Registration
from baton.telemetry.providers import Telemetry
from baton.v1 import types_pb2
from baton.worker.cost_store import CostStore
from baton.worker.costs import CostBook
from baton.worker.figures import Figures
from baton.worker.gate import WorkGate
from baton.worker.parts import RoleService, WorkerParts
from baton.worker.role_change import SERVICE as WORKER_SERVICE
from baton.worker.role_change import RoleChange, RoleDesk

logger = logging.getLogger(__name__)

DRAIN_GRACE_S = 10.0
"""How long running requests may go on after SIGTERM before routers have to move them."""

WATCH_EVERY_S = 0.5
"""How often readiness is looked at."""

LAST_FRAMES_S = 0.2
"""How long links stay open after the last request ended: its frames may wait for their message."""

CANCEL_GRACE_S = 5.0
"""How long cancelled requests may take to free what they hold."""


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """Which worker this process is, and where. `advertise` overrides the address others use."""

    worker_id: str
    incarnation: str
    role: WorkerRole
    host: str
    port: int
    advertise: str = ""


class WorkerHost:
    """Runs one role's service on one engine: one life of a worker. Use `run` once."""

    def __init__(
        self,
        identity: WorkerIdentity,
        config: Config,
        engine: Engine,
        transport: KvTransport,
        telemetry: Telemetry,
        build_service: Callable[[WorkerParts], RoleService],
        make_fleet: Callable[[Redis], FleetView] = FleetView,
    ) -> None:
        self._identity = identity
        self._config = config
        self._engine = engine
        self._transport = transport
        self._telemetry = telemetry
        self._build_service = build_service
        self._make_fleet = make_fleet
        self._gate = WorkGate()
        self._costs = CostBook()
        self._figures = Figures(engine, self._gate, self._costs, transport)
        self._started_at_s = time.time()
        self._address = self._listening = ""
        self._desk = RoleDesk(identity.role, _fixed_because(config))
        self.is_ready = asyncio.Event()

    @property
    def listening(self) -> str:
        """host:port where the server listens, once it does."""
        return self._listening

    @property
    def next_life(self) -> RoleChange | None:
        """What the worker was asked to become, after `run`."""
        return self._desk.wish

    async def run(self, redis: Redis, stop: asyncio.Event) -> None:
        """Serves until `stop` is set or another role is asked for, then drains and stops.

        Raises StartupError and RegistrationError when the worker cannot join the fleet.
        """
        fleet = self._make_fleet(redis)
        service = self._build_service(self._parts(fleet))
        names = (*service.names, WORKER_SERVICE)
        server = ServiceServer(self._identity.host, self._identity.port, names)
        service.add_to(server.grpc)
        self._desk.add_to(server.grpc)
        await server.start()
        self._listening = server.address
        self._address = server.advertised(self._identity.advertise)
        try:
            await self._engine.start(self._transport)
            try:
                await self._serve(redis, fleet, service, server, stop)
            finally:
                await self._engine.stop()
        finally:
            await server.drain(0)

    async def _serve(
        self,
        redis: Redis,
        fleet: FleetView,
        service: RoleService,
        server: ServiceServer,
        stop: asyncio.Event,
    ) -> None:
        self._figures.observe(self._telemetry)
        events = KvEventPublisher(redis, self._identity.incarnation, self._engine)
        known_costs = self._cost_store(redis)
        await known_costs.exchange()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(running(fleet.run()))
            await fleet.wait_synced()
            await service.prepare()
            registration = await stack.enter_async_context(Registration(redis, self._record()))
            publishing = self._figures.publish(registration)
            for work in (events.run(), known_costs.run(), publishing):
                await stack.enter_async_context(running(work))
            async with running(service.run()):
                self._gate.open()
                await server.set_ready(True)
                await stack.enter_async_context(running(self._supervise(server, service)))
                self.is_ready.set()
                self._log_ready()
                await _first_of(stop, registration, self._desk)
                await self._drain(server)
        await known_costs.exchange()
        await _remove(events)

    async def _supervise(self, server: ServiceServer, service: RoleService) -> None:
        """Takes no work while an engine that lives apart is lost, until it is back."""
        engine = as_room_engine(self._engine)
        if engine is None:
            await self._watch(server, service)
            return

        async def changed(is_up: bool) -> None:
            self._gate.set_engine(is_up)
            await server.set_ready(is_up and not self._gate.is_draining)

        await engine.supervise(changed)

    async def _watch(self, server: ServiceServer, service: RoleService) -> None:
        """Says not ready while the service cannot do its work, and ready when it can again."""
        last = ""
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            fault = service.fault()
            if fault == last:
                continue
            last = fault
            logger.warning(
                "readiness changed worker=%s: %s", self._identity.worker_id, fault or "up"
            )
            await server.set_ready(not fault and not self._gate.is_draining)

    async def _drain(self, server: ServiceServer) -> None:
        """Lets running work end; the figures say meanwhile that the worker drains."""
        logger.info("draining worker=%s running=%d", self._identity.worker_id, self._gate.running)
        self._gate.drain()
        await server.set_ready(False)
        if not await self._gate.wait_idle(DRAIN_GRACE_S):
            logger.warning("requests left to others count=%d", self._gate.running)
        # Links never end by themselves. Their breaking cancels what is left on them.
        await server.drain(LAST_FRAMES_S)
        if not await self._gate.wait_idle(CANCEL_GRACE_S):
            logger.error("requests did not stop count=%d", self._gate.running)

    def _parts(self, fleet: FleetView) -> WorkerParts:
        return WorkerParts(
            worker_id=self._identity.worker_id,
            config=self._config,
            engine=self._engine,
            transport=self._transport,
            telemetry=self._telemetry,
            gate=self._gate,
            fleet=fleet,
            describe=self._describe,
            costs=self._costs,
        )

    def _cost_store(self, redis: Redis) -> CostStore:
        capabilities = self._engine.capabilities
        device = capabilities.device or self._config.engine.kind
        return CostStore(redis, self._costs, capabilities.model, device)

    def _describe(self) -> types_pb2.WorkerInfo:
        stats = self._figures.read()
        return worker_info(self._record(), stats, time.time() - stats.taken_at_s)

    def _record(self) -> WorkerRecord:
        capabilities = self._engine.capabilities
        return WorkerRecord(
            worker_id=self._identity.worker_id,
            incarnation=self._identity.incarnation,
            role=self._identity.role,
            address=self._address,
            started_at_s=self._started_at_s,
            model=capabilities.model,
            context_length=capabilities.context_length,
            vocab_size=capabilities.vocab_size,
            tokenizer_digest=capabilities.tokenizer_digest,
            block_size=capabilities.block_size,
            hash_scheme=HASH_SCHEME,
            kv_bytes_per_token=capabilities.kv_bytes_per_token,
            kv_layout=capabilities.kv_layout,
            transfer_backend=self._transport.backend,
            kv_blocks=capabilities.kv_blocks,
            prefills_locally=capabilities.prefills_locally,
            takes_prefilled=capabilities.takes_prefilled,
        )

    def _log_ready(self) -> None:
        logger.info(
            "%s worker ready worker=%s address=%s incarnation=%s model=%s kv_blocks=%d kv_by=%s",
            self._identity.role.value,
            self._identity.worker_id,
            self._address,
            self._identity.incarnation,
            self._engine.capabilities.model,
            self._engine.capabilities.kv_blocks,
            self._transport.backend,
        )


async def _remove(events: KvEventPublisher) -> None:
    try:
        await events.remove()
    except REDIS_ERRORS as error:
        logger.info("cache keys left to run out: %s", error)


def _fixed_because(config: Config) -> str:
    """Returns why a worker cannot change its role; empty if it can."""
    if config.engine.kind == "sglang":
        return "SGLang has its role from its start: restart the worker in the other one"
    return ""


async def _first_of(stop: asyncio.Event, registration: Registration, desk: RoleDesk) -> None:
    """Returns when the process was told to stop, another took its place, or it changes roles."""
    waits = {
        asyncio.ensure_future(desk.wait_asked()),
        asyncio.ensure_future(stop.wait()),
        asyncio.ensure_future(registration.wait_lost()),
    }
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
