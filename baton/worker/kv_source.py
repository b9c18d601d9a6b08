"""What a worker that holds KV serves to decode workers: introductions and cached prefixes.

Prefill workers add computing to it (services/prefill/server.py); a decode worker serves it as it
is, so that another one can pull a prefix where the last turn of a conversation left it.
"""

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import grpc

from baton.errors import PreconditionError
from baton.kv.transfer import KvDestination
from baton.rpc.link_server import ServedCall, serve_link
from baton.rpc.links import PREFILL_LINK
from baton.rpc.server import statuses
from baton.v1 import prefill_link_pb2, prefill_pb2, prefill_pb2_grpc
from baton.worker import messages
from baton.worker.finish import finish
from baton.worker.parts import WorkerParts
from baton.worker.readers import LinkedReaders, Readers

Call = ServedCall[prefill_link_pb2.PrefillCommand, prefill_link_pb2.PrefillEvent]


class KvSource(prefill_pb2_grpc.PrefillServiceServicer):
    """Serves the links of all decode workers from one worker's cache."""

    def __init__(self, parts: WorkerParts, readers: Readers) -> None:
        self._parts = parts
        self._readers = readers

    async def compute(self, call: Call, destination: KvDestination) -> prefill_link_pb2.PrefillDone:
        """Computes a prompt; a worker that only holds KV declines."""
        raise PreconditionError("this worker computes no prompts", reason="CACHED_ONLY")

    async def Link(  # type: ignore[override]  # noqa: N802  # writes to the context instead of yielding
        self,
        request_iterator: AsyncIterator[prefill_link_pb2.PrefillServiceLinkRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        """Serves one decode worker until it hangs up; what it asked for ends with the link."""
        link = LinkedReaders()
        try:
            await serve_link(PREFILL_LINK, partial(self.serve, link), context)
        finally:
            await finish(self._readers.close_link(link))

    async def ConnectPeer(  # noqa: N802
        self,
        request: prefill_pb2.ConnectPeerRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> prefill_pb2.ConnectPeerResponse:
        """Introduces a decode worker and proves the pair by a probe transfer."""
        probe = KvDestination(request.probe_id, request.agent, 0, (request.probe_block,))
        async with statuses(context):
            with self._parts.gate.pass_through():
                receipt = await self._readers.introduce(
                    request.agent, request.agent_metadata, request.kv_layout, probe
                )
        transport = self._parts.transport
        return prefill_pb2.ConnectPeerResponse(
            agent=transport.agent,
            agent_metadata=transport.metadata(),
            probe=messages.receipt_message(receipt),
        )

    async def GetState(  # noqa: N802
        self,
        request: prefill_pb2.PrefillServiceGetStateRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> prefill_pb2.PrefillServiceGetStateResponse:
        """Shows load and KV accounting."""
        async with statuses(context):
            worker = self._parts.describe()
        return prefill_pb2.PrefillServiceGetStateResponse(worker=worker)

    async def serve(self, link: LinkedReaders, call: Call) -> None:
        """Serves one request of a link."""
        start = call.start.start
        destination = messages.destination(start.destination)
        with self._parts.gate.pass_through(), self._readers.writing(link, destination.agent):
            if start.cached_only:
                done = await self._send_cached(start, destination)
            else:
                done = await self.compute(call, destination)
        await call.send(prefill_link_pb2.PrefillEvent(done=done))

    async def _send_cached(
        self, start: prefill_link_pb2.PrefillStart, destination: KvDestination
    ) -> prefill_link_pb2.PrefillDone:
        request = messages.engine_request(start)
        receipt = await self._parts.engine.send_cached(request, destination)
        return prefill_link_pb2.PrefillDone(
            receipt=messages.receipt_message(receipt), cached_tokens=receipt.tokens
        )
