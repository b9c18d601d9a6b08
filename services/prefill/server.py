"""PrefillService: link frames to jobs and results back; what it shares is in KvSource."""

from collections.abc import Sequence
from typing import Any

import grpc

from baton.engine.base import Prefilled
from baton.engine.rooms import RoomEngine, as_room_engine
from baton.errors import PreconditionError
from baton.kv.transfer import KvDestination
from baton.rpc.server import statuses
from baton.state.records import WorkerRole
from baton.v1 import prefill_link_pb2, prefill_pb2, prefill_pb2_grpc
from baton.worker import messages
from baton.worker.kv_source import Call, KvSource
from baton.worker.parts import WorkerParts
from baton.worker.readers import LinkedReaders, Readers
from services.prefill.worker import PrefillJob, PrefillWorker

SERVICE = "baton.v1.PrefillService"


class PrefillServer(KvSource):
    """Serves the links of all decode workers from one prefill worker."""

    names: Sequence[str] = (SERVICE,)

    def __init__(self, parts: WorkerParts, worker: PrefillWorker, readers: Readers) -> None:
        super().__init__(parts, readers)
        self._worker = worker

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the service."""
        prefill_pb2_grpc.add_PrefillServiceServicer_to_server(self, server)

    async def prepare(self) -> None:
        """Does nothing: decode workers introduce themselves."""

    def fault(self) -> str:
        """Returns why no KV can be moved, empty while it can."""
        return self._parts.transport.fault()

    async def run(self) -> None:
        """Forgets decode workers that are gone."""
        await self._readers.follow(self._parts.fleet)

    async def ConnectPeer(
        self,
        request: prefill_pb2.ConnectPeerRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> prefill_pb2.ConnectPeerResponse:
        """Introduces a decode worker; an engine that moves KV itself tells where to meet it."""
        if (engine := as_room_engine(self._parts.engine)) is None:
            return await super().ConnectPeer(request, context)
        async with statuses(context):
            with self._parts.gate.pass_through():
                return self._tell_rendezvous(engine, request)

    async def compute(self, call: Call, destination: KvDestination) -> prefill_link_pb2.PrefillDone:
        """Computes a prompt into `destination`."""
        job = PrefillJob(
            messages.engine_request(call.start.start),
            destination,
            self._worker_id_of(destination.agent),
            call.traceparent,
        )
        return _done(await self._worker.run(job))

    async def serve(self, link: LinkedReaders, call: Call) -> None:
        """Serves one request of a link; one that names a room meets its KV's reader there."""
        start = call.start.start
        if not start.HasField("room"):
            await super().serve(link, call)
            return
        with self._parts.gate.pass_through():
            request = messages.engine_request(start, call.traceparent)
            # Who else is in the room only the engines know.
            job = PrefillJob(request, messages.room(start.room), "", call.traceparent)
            prefilled = await self._worker.run(job)
        await call.send(prefill_link_pb2.PrefillEvent(done=_done(prefilled)))

    def _tell_rendezvous(
        self, engine: RoomEngine, request: prefill_pb2.ConnectPeerRequest
    ) -> prefill_pb2.ConnectPeerResponse:
        """Tells where to meet. Raises PreconditionError for an engine that cannot."""
        layout = engine.capabilities.kv_layout
        if request.kv_layout != layout:
            raise PreconditionError(
                f"KV layouts differ: {request.kv_layout} here, {layout} there",
                reason="LAYOUT_MISMATCH",
            )
        agent = self._parts.transport.agent
        return prefill_pb2.ConnectPeerResponse(agent=agent, rendezvous=engine.rendezvous)

    def _worker_id_of(self, agent: str) -> str:
        """Returns the decode worker's name; its incarnation while the fleet does not show it."""
        for view in self._parts.fleet.workers(WorkerRole.DECODE):
            if view.record.incarnation == agent:
                return view.record.worker_id
        return agent


def _done(prefilled: Prefilled) -> prefill_link_pb2.PrefillDone:
    assert prefilled.receipt is not None, "a prefill for a destination has a receipt"
    return prefill_link_pb2.PrefillDone(
        first_token=prefilled.first_token,
        logprob=prefilled.logprob,
        receipt=messages.receipt_message(prefilled.receipt),
        queue_s=prefilled.queue_s,
        compute_s=prefilled.compute_s,
        cached_tokens=prefilled.cached_tokens,
    )
