"""Where an answer's parts go: a Generate call of one client, or a link that many requests share."""

from collections.abc import Sequence
from typing import Any, Protocol

import grpc

from baton.rpc.link_server import ServedCall
from baton.v1 import router_pb2

RouterCall = ServedCall[router_pb2.RouterCommand, router_pb2.RouterEvent]


TRACERESPONSE = "traceresponse"
"""Metadata of W3C Trace Context Level 2. On a link, the end of an answer names its trace."""


class Outlet(Protocol):
    """Sends an answer's parts to its client; waits while the client does not read."""

    async def chunk(self, text: str, output_ids: Sequence[int], logprobs: Sequence[float]) -> None:
        """Sends some of the answer."""
        ...

    async def complete(self, complete: router_pb2.GenerateComplete) -> None:
        """Sends the end of the answer."""
        ...


class StreamOutlet:
    """The stream of one Generate call."""

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._context = context

    async def traced(self, traceparent: str) -> None:
        """Tells before anything else which span the request became."""
        await self._context.send_initial_metadata(((TRACERESPONSE, traceparent),))

    async def chunk(self, text: str, output_ids: Sequence[int], logprobs: Sequence[float]) -> None:
        """See Outlet."""
        response = router_pb2.GenerateResponse()
        _fill_in(response.chunk, text, output_ids, logprobs)
        await self._context.write(response)

    async def complete(self, complete: router_pb2.GenerateComplete) -> None:
        """See Outlet."""
        await self._context.write(router_pb2.GenerateResponse(complete=complete))


class LinkOutlet:
    """One request on a link."""

    def __init__(self, call: RouterCall) -> None:
        self._call = call

    async def chunk(self, text: str, output_ids: Sequence[int], logprobs: Sequence[float]) -> None:
        """See Outlet."""
        event = router_pb2.RouterEvent()
        _fill_in(event.chunk, text, output_ids, logprobs)
        await self._call.send(event)

    async def complete(self, complete: router_pb2.GenerateComplete) -> None:
        """See Outlet."""
        await self._call.send(router_pb2.RouterEvent(complete=complete))


def _fill_in(
    chunk: router_pb2.GenerateChunk,
    text: str,
    output_ids: Sequence[int],
    logprobs: Sequence[float],
) -> None:
    chunk.text = text
    chunk.output_ids.extend(output_ids)
    if logprobs:
        chunk.logprobs.extend(logprobs)
