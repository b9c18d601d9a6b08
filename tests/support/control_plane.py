"""A router, admission and scripted decode workers in this process: real gRPC, real Redis, no model.

Enter these in the test itself: they hold task groups, which belong to one task.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from redis.asyncio import Redis

from baton.blocks import HASH_SCHEME
from baton.config import Config
from baton.rpc.link_server import ServedCall, serve_link
from baton.rpc.links import DECODE_LINK
from baton.rpc.server import Listening, ServiceServer
from baton.state.connect import connect
from baton.state.records import WorkerRecord, WorkerRole, WorkerStats, new_incarnation
from baton.state.registry import Registration
from baton.telemetry.providers import Telemetry, start_telemetry
from baton.v1 import decode_link_pb2 as frames
from baton.v1 import decode_pb2, decode_pb2_grpc, types_pb2
from services.admission.app import AdmissionApp, running_admission
from services.router.access import Access
from services.router.app import RouterApp, running_router
from services.router.model import ServedModel, load_served_model
from tests.support.mesh import Client

Call = ServedCall[Any, Any]
Script = Callable[["FakeDecodeWorker", Call], Awaitable[None]]


KV_BLOCKS = 1 << 20
"""So many that no test fills them: admission reckons that who generates takes more every second,
so with few of them a slow machine would see the pool full."""


def token_at(position: int) -> int:
    """The token that every fake worker generates at a position of the whole sequence."""
    return 300 + position % 3000


class FakeDecodeWorker(decode_pb2_grpc.DecodeServiceServicer):
    """Speaks the decode link and generates tokens by position, under the test's control.

    `script` replaces what it does with a request; `allow` limits how many tokens it sends.
    """

    def __init__(self, worker_id: str, model: ServedModel, script: Script | None = None) -> None:
        self.worker_id = worker_id
        self.model = model
        self.script = script or FakeDecodeWorker.generate
        self.starts: list[frames.DecodeStart] = []
        self.calls: list[Call] = []
        self.active = 0
        self.cancelled = 0
        self.sent = 0
        self._budget: int | None = None
        self._more = asyncio.Event()
        self.server: ServiceServer | None = None
        self.registration: Registration | None = None

    @property
    def incarnation(self) -> str:
        """This life of the worker."""
        assert self.registration is not None
        return self.registration.record.incarnation

    def allow(self, tokens: int | None) -> None:
        """Sets how many tokens may be sent from now on over all requests."""
        self._budget = tokens
        self._more.set()

    async def take_token(self) -> None:
        """Waits until the budget has a token and takes it."""
        while self._budget == 0:
            self._more.clear()
            await self._more.wait()
        if self._budget is not None:
            self._budget -= 1

    async def Link(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        await serve_link(DECODE_LINK, self._serve, context)

    async def GetState(
        self, request: Any, context: Any
    ) -> decode_pb2.DecodeServiceGetStateResponse:
        worker = types_pb2.WorkerInfo(worker_id=self.worker_id)
        return decode_pb2.DecodeServiceGetStateResponse(worker=worker)

    async def _serve(self, call: Call) -> None:
        self.starts.append(call.start.start)
        self.calls.append(call)
        self.active += 1
        try:
            await self.script(self, call)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.active -= 1

    async def generate(self, call: Call) -> None:
        """What it does without a script: all tokens, then LENGTH."""
        await self.send_prefilled(call)
        for _ in range(call.start.start.sampling_params.max_tokens):
            await self.take_token()
            await self.send_token(call)
        await self.send_finished(call, types_pb2.FINISH_REASON_LENGTH)

    async def send_prefilled(self, call: Call, **fields: Any) -> None:
        values = {
            "mode": types_pb2.PREFILL_MODE_LOCAL,
            "reason": "SHORT_PREFILL",
            "prefill_worker_id": self.worker_id,
            **fields,
        }
        await call.send(frames.DecodeEvent(prefilled=frames.DecodePrefilled(**values)))

    async def send_token(self, call: Call) -> None:
        """Sends the next token of this request."""
        done = getattr(call, "tokens_sent", 0)
        call.tokens_sent = done + 1  # type: ignore[attr-defined]
        self.sent += 1
        await self.send_tokens(call, [token_at(len(call.start.start.input_ids) + done)])

    async def send_tokens(self, call: Call, ids: Sequence[int]) -> None:
        logprobs = [-0.5] * len(ids) if call.start.start.sampling_params.logprobs else []
        tokens = frames.DecodeTokens(output_ids=ids, logprobs=logprobs)
        await call.send(frames.DecodeEvent(tokens=tokens))

    async def send_finished(self, call: Call, reason: "types_pb2.FinishReason.ValueType") -> None:
        await call.send(frames.DecodeEvent(finished=frames.DecodeFinished(finish_reason=reason)))

    def record(self) -> WorkerRecord:
        assert self.server is not None
        return WorkerRecord(
            worker_id=self.worker_id,
            incarnation=new_incarnation(),
            role=WorkerRole.DECODE,
            address=self.server.address,
            started_at_s=time.time(),
            model=self.model.name,
            context_length=self.model.context_length,
            vocab_size=self.model.vocab_size,
            tokenizer_digest=self.model.tokenizer_digest,
            block_size=16,
            hash_scheme=HASH_SCHEME,
            kv_bytes_per_token=1024,
            kv_layout="fake",
            transfer_backend="fake",
            kv_blocks=KV_BLOCKS,
        )

    async def publish(self, **figures: Any) -> None:
        """Tells the fleet its figures."""
        assert self.registration is not None
        await self.registration.publish_stats(WorkerStats(taken_at_s=time.time(), **figures))

    async def die(self) -> None:
        """Cuts all links at once, as a killed process does; its registration stays."""
        assert self.server is not None
        await self.server.grpc.stop(None)

    @asynccontextmanager
    async def running(self, redis: Redis) -> AsyncIterator["FakeDecodeWorker"]:
        """Serves and is registered for the length of the block."""
        self.server = ServiceServer("127.0.0.1", 0, ["baton.v1.DecodeService"])
        decode_pb2_grpc.add_DecodeServiceServicer_to_server(self, self.server.grpc)
        await self.server.start()
        try:
            async with Registration(redis, self.record()) as self.registration:
                await self.publish()
                yield self
        finally:
            await self.server.grpc.stop(None)


class ControlPlane:
    """Starts services on one Redis as a test asks for them; all end with the block."""

    def __init__(self, url: str, model: ServedModel, stack: AsyncExitStack) -> None:
        self.url = url
        self.model = model
        self.redis = connect(url)
        self.telemetry: Telemetry = start_telemetry("test", "test", "")
        self.stack = stack

    async def decode(self, worker_id: str, script: Script | None = None) -> FakeDecodeWorker:
        worker = FakeDecodeWorker(worker_id, self.model, script)
        return await self.stack.enter_async_context(worker.running(self.redis))

    async def admission(
        self, config: Config | None = None, name: str = "admission-0"
    ) -> AdmissionApp:
        app = running_admission(
            config or Config(),
            Listening("127.0.0.1", 0, name),
            self.redis,
            self.telemetry,
        )
        return await self.stack.enter_async_context(app)

    async def router(
        self,
        config: Config | None = None,
        name: str = "router-0",
        access: Access | None = None,
    ) -> RouterApp:
        listening = Listening("127.0.0.1", 0, name)
        app = running_router(
            config or Config(), listening, self.model, self.redis, self.telemetry, access
        )
        return await self.stack.enter_async_context(app)

    async def client(self, router: RouterApp) -> Client:
        client = Client(router.address)
        self.stack.push_async_callback(client.close)
        return client


@asynccontextmanager
async def control_plane(url: str, model: ServedModel | None = None) -> AsyncIterator[ControlPlane]:
    """Yields an empty control plane on the Redis at `url`, whose data is dropped first."""
    async with AsyncExitStack() as stack:
        plane = ControlPlane(url, model or load_served_model("baton-tiny"), stack)
        stack.callback(plane.telemetry.shutdown)
        stack.push_async_callback(plane.redis.aclose)
        await plane.redis.flushall()
        yield plane
