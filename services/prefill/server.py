"""PrefillService: link frames and introductions to domain calls, and results back."""

from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import grpc

from baton.engine.base import Prefilled
from baton.engine.rooms import RoomEngine, as_room_engine
from baton.errors import PreconditionError
from baton.kv.transfer import KvDestination
from baton.rpc.link_server import ServedCall, serve_link
from baton.rpc.links import PREFILL_LINK
from baton.rpc.server import statuses
from baton.state.records import WorkerRole
from baton.v1 import prefill_link_pb2, prefill_pb2, prefill_pb2_grpc
from baton.worker import messages
from baton.worker.finish import finish
from baton.worker.parts import WorkerParts
from services.prefill.peers import LinkedPeers, PrefillPeers
from services.prefill.worker import PrefillJob, PrefillWorker

SERVICE = "baton.v1.PrefillService"

Call = ServedCall[prefill_link_pb2.PrefillCommand, prefill_link_pb2.PrefillEvent]


class PrefillServer(prefill_pb2_grpc.PrefillServiceServicer):
    """Serves the links of all decode workers from one prefill worker."""

    names: Sequence[str] = (SERVICE,)

    def __init__(self, parts: WorkerParts, worker: PrefillWorker, peers: PrefillPeers) -> None:
        self._parts = parts
        self._worker = worker
        self._peers = peers

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the service."""
        prefill_pb2_grpc.add_PrefillServiceServicer_to_server(self, server)

    async def prepare(self) -> None:
        """Does nothing: decode workers introduce themselves."""

    async def run(self) -> None:
        """Forgets decode workers that are gone."""
        await self._peers.follow(self._parts.fleet)

    async def Link(  # type: ignore[override]  # writes to the context instead of yielding
        self,
        request_iterator: AsyncIterator[prefill_link_pb2.PrefillServiceLinkRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        """Serves one decode worker until it hangs up; its prefills end with the link."""
        link = LinkedPeers()
        try:
            await serve_link(PREFILL_LINK, partial(self._serve, link), context)
        finally:
            await finish(self._peers.close_link(link))

    async def ConnectPeer(
        self,
        request: prefill_pb2.ConnectPeerRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> prefill_pb2.ConnectPeerResponse:
        """Introduces a decode worker and proves the pair by a probe transfer."""
        if (engine := as_room_engine(self._parts.engine)) is not None:
            async with statuses(context):
                with self._parts.gate.pass_through():
                    return self._tell_rendezvous(engine, request)
        probe = KvDestination(request.probe_id, request.agent, 0, (request.probe_block,))
        async with statuses(context):
            with self._parts.gate.pass_through():
                receipt = await self._peers.introduce(
                    request.agent, request.agent_metadata, request.kv_layout, probe
                )
        transport = self._parts.transport
        return prefill_pb2.ConnectPeerResponse(
            agent=transport.agent,
            agent_metadata=transport.metadata(),
            probe=messages.receipt_message(receipt),
        )

    async def GetState(
        self,
        request: prefill_pb2.PrefillServiceGetStateRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> prefill_pb2.PrefillServiceGetStateResponse:
        """Shows load and KV accounting."""
        async with statuses(context):
            worker = self._parts.describe()
        return prefill_pb2.PrefillServiceGetStateResponse(worker=worker)

    async def _serve(self, link: LinkedPeers, call: Call) -> None:
        start = call.start.start
        if start.HasField("room"):
            await self._serve_room(call)
            return
        destination = messages.destination(start.destination)
        with self._parts.gate.pass_through(), self._peers.writing(link, destination.agent):
            job = PrefillJob(
                messages.engine_request(start),
                destination,
                self._worker_id_of(destination.agent),
                call.traceparent,
            )
            prefilled = await self._worker.run(job)
        await call.send(prefill_link_pb2.PrefillEvent(done=_done(prefilled)))

    async def _serve_room(self, call: Call) -> None:
        start = call.start.start
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
