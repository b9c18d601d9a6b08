"""Prefill and decode workers of one process: real gRPC, real Redis, in-process transfers."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from baton.config import Config, load_config
from baton.engine.base import Engine, EngineSamples, PrefillSample
from baton.kv.inprocess import InProcessFabric, InProcessTransport
from baton.latency import TRUSTED_SAMPLES
from baton.rpc.link import LinkPool
from baton.rpc.links import DECODE_LINK
from baton.state.connect import connect
from baton.state.records import WorkerRole, new_incarnation
from baton.telemetry.providers import start_telemetry
from baton.v1 import decode_link_pb2, types_pb2
from baton.worker.costs import CostBook
from baton.worker.host import WorkerHost, WorkerIdentity
from baton.worker.parts import RoleService, WorkerParts
from services.decode.main import build_service as build_decode
from services.prefill.main import build_service as build_prefill
from tests.support.cable import Cable

QUARANTINE_S = 0.5


@dataclass
class Worker:
    """One running worker. `cable` is the line on which others reach it."""

    worker_id: str
    incarnation: str
    engine: Any
    transport: InProcessTransport
    host: WorkerHost
    service: Any
    costs: CostBook
    cable: Cable
    stop: asyncio.Event
    task: "asyncio.Task[None]"

    @property
    def address(self) -> str:
        return self.cable.address

    def candidate(self, queue_length: int = 0) -> decode_link_pb2.PrefillCandidate:
        """Returns the worker as a router offers it to decode workers."""
        return decode_link_pb2.PrefillCandidate(
            worker_id=self.worker_id,
            incarnation=self.incarnation,
            address=self.address,
            queue_length=queue_length,
        )

    def holder(self, cached_tokens: int) -> decode_link_pb2.PrefixHolder:
        """Returns the worker as a router offers it to pull a prefix from."""
        return decode_link_pb2.PrefixHolder(
            worker_id=self.worker_id,
            incarnation=self.incarnation,
            address=self.address,
            cached_tokens=cached_tokens,
        )

    def learn_prefill(self, seconds_per_token: float) -> None:
        """Lets the worker believe that it measured prompts that took so long."""
        sizes = [64 * (1 + index % 8) for index in range(2 * TRUSTED_SAMPLES)]
        self.costs.learn(
            EngineSamples(
                prefills=tuple(PrefillSample(size, 0, size * seconds_per_token) for size in sizes)
            )
        )

    def is_clean(self) -> bool:
        """Tells whether nothing is held for anybody, and the books balance."""
        stats = self.engine.stats()
        total = stats.kv_blocks_free + stats.kv_blocks_cached + stats.kv_blocks_owned
        assert total == stats.kv_blocks_total
        return not (stats.kv_blocks_owned or stats.kv_leases)


@dataclass
class Answer:
    """What one generation said."""

    prefilled: Any = None
    stages: Any = None
    tokens: list[int] = field(default_factory=list)
    finish_reason: int = 0


class WorkerFleet:
    """Starts workers and asks decode workers as a router would."""

    def __init__(self, redis_url: str, **settings: Any) -> None:
        self.fabric = InProcessFabric()
        self.config: Config = load_config(environ={"REDIS_URL": redis_url}).model_copy(
            update=settings
        )
        self.links = LinkPool(DECODE_LINK)
        self._requests = itertools.count()
        self._workers: list[Worker] = []

    async def prefill(self, worker_id: str, engine: Engine) -> Worker:
        return await self._start(worker_id, WorkerRole.PREFILL, engine, build_prefill)

    async def decode(self, worker_id: str, engine: Engine, port: int = 0) -> Worker:
        def build(parts: WorkerParts) -> RoleService:
            return build_decode(parts, QUARANTINE_S)

        return await self._start(worker_id, WorkerRole.DECODE, engine, build, port)

    def ask(
        self,
        worker: Worker,
        prompt: Sequence[int],
        candidates: Sequence[decode_link_pb2.PrefillCandidate] = (),
        max_tokens: int = 8,
        timeout_s: float | None = 20.0,
        traceparent: str = "",
        holders: Sequence[decode_link_pb2.PrefixHolder] = (),
    ) -> Any:
        """Opens a greedy request on a decode worker."""
        sampling = types_pb2.SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        start = decode_link_pb2.DecodeStart(
            request_id=f"request-{next(self._requests)}",
            input_ids=prompt,
            sampling_params=sampling,
            priority=types_pb2.PRIORITY_NORMAL,
            prefill_candidates=candidates,
            prefix_holders=holders,
        )
        return self.links.link(worker.address).open(
            decode_link_pb2.DecodeCommand(start=start),
            timeout_s=timeout_s,
            traceparent=traceparent,
        )

    async def close(self) -> None:
        await self.links.close()
        for worker in self._workers:
            worker.stop.set()
        await asyncio.gather(*(worker.task for worker in self._workers))
        for worker in self._workers:
            await worker.cable.cut()

    async def _start(
        self,
        worker_id: str,
        role: WorkerRole,
        engine: Any,
        build: Callable[[WorkerParts], RoleService],
        port: int = 0,
    ) -> Worker:
        cable = Cable()
        await cable.lay()
        incarnation = new_incarnation()
        identity = WorkerIdentity(worker_id, incarnation, role, "127.0.0.1", port, cable.address)
        transport = InProcessTransport(incarnation, self.fabric)
        services: list[RoleService] = []
        costs: list[CostBook] = []

        def building(parts: WorkerParts) -> RoleService:
            services.append(build(parts))
            costs.append(parts.costs)
            return services[0]

        telemetry = start_telemetry("test", worker_id, "")
        host = WorkerHost(identity, self.config, engine, transport, telemetry, building)
        stop = asyncio.Event()
        task = asyncio.get_running_loop().create_task(_run(host, self.config.mesh.redis_url, stop))
        ready = asyncio.get_running_loop().create_task(host.is_ready.wait())
        async with asyncio.timeout(20):
            await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if task.done():
            await cable.cut()
            task.result()
        cable.plug_in(host.listening)
        worker = Worker(
            worker_id,
            incarnation,
            engine,
            transport,
            host,
            services[0],
            costs[0],
            cable,
            stop,
            task,
        )
        self._workers.append(worker)
        return worker


async def _run(host: WorkerHost, redis_url: str, stop: asyncio.Event) -> None:
    redis = connect(redis_url)
    try:
        await host.run(redis, stop)
    finally:
        await redis.aclose()


async def read(call: Any) -> Answer:
    """Reads a generation to its end."""
    answer = Answer()
    async for event in call:
        take(answer, event)
    assert answer.finish_reason
    return answer


def take(answer: Answer, event: Any) -> None:
    """Adds one event to an answer."""
    match event.WhichOneof("event"):
        case "prefilled":
            assert answer.prefilled is None
            assert not answer.tokens
            answer.prefilled = event.prefilled
        case "stages":
            answer.stages = event.stages
        case "tokens":
            assert answer.prefilled is not None
            answer.tokens += event.tokens.output_ids
        case "finished":
            answer.finish_reason = event.finished.finish_reason


@asynccontextmanager
async def running_fleet(redis_url: str, **settings: Any) -> AsyncIterator[WorkerFleet]:
    fleet = WorkerFleet(redis_url, **settings)
    try:
        yield fleet
    finally:
        await fleet.close()
