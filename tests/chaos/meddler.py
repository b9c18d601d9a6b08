"""A gRPC proxy before a prefill worker that forges, repeats or loses its answers."""

import enum
from collections.abc import AsyncIterator
from typing import Any

import grpc

from baton.rpc.channels import MAX_MESSAGE_BYTES, SERVER_OPTIONS
from baton.v1 import prefill_link_pb2

_LINK = "/baton.v1.PrefillService/Link"
_OPTIONS = [
    ("grpc.max_receive_message_length", 4 * MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", 4 * MAX_MESSAGE_BYTES),
]


class Meddling(enum.Enum):
    """What happens to the answers that carry a receipt."""

    NONE = "none"
    OTHER_BLOCKS = "other blocks"
    FEWER_BLOCKS = "fewer blocks"
    MORE_TOKENS = "more tokens"
    OTHER_TRANSFER = "other transfer"
    TWICE = "twice"
    LOST = "lost"


class Meddler:
    """Forwards every RPC to `target` as bytes; `meddling` says what it does to receipts."""

    def __init__(self, target: str, host: str = "127.0.0.1") -> None:
        self.meddling = Meddling.NONE
        self._host = host
        self.port = 0
        self.meddled = 0
        self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        self._server = grpc.aio.server(options=[*SERVER_OPTIONS, *_OPTIONS])
        self._server.add_generic_rpc_handlers((_Forwarder(self._channel, self._responses),))

    async def start(self) -> None:
        """Begins to listen."""
        self.port = self._server.add_insecure_port(f"{self._host}:0")
        await self._server.start()

    async def stop(self) -> None:
        """Ends every RPC."""
        await self._server.stop(0)
        await self._channel.close()

    def _responses(self, method: str, data: bytes) -> list[bytes]:
        if self.meddling is Meddling.NONE or method != _LINK:
            return [data]
        message = prefill_link_pb2.PrefillServiceLinkResponse.FromString(data)
        with_receipt = [it for it in message.events if it.HasField("done")]
        if not with_receipt:
            return [data]
        self.meddled += 1
        if self.meddling is Meddling.TWICE:
            return [data, data]
        if self.meddling is Meddling.LOST:
            return []
        for event in with_receipt:
            _forge(event.done.receipt, self.meddling)
        return [message.SerializeToString()]


def _forge(receipt: Any, meddling: Meddling) -> None:
    if meddling is Meddling.OTHER_BLOCKS:
        receipt.blocks_digest ^= 1
    elif meddling is Meddling.FEWER_BLOCKS:
        receipt.blocks = max(receipt.blocks, 1) - 1
    elif meddling is Meddling.MORE_TOKENS:
        receipt.tokens += 16
    elif meddling is Meddling.OTHER_TRANSFER:
        receipt.transfer_id += "x"


class _Forwarder(grpc.GenericRpcHandler):
    """Every method as a stream of bytes both ways: on the wire a unary call is one of those."""

    def __init__(self, channel: grpc.aio.Channel, responses: Any) -> None:
        self._channel = channel
        self._responses = responses

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method

        async def forward(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            opened: Any = self._channel.stream_stream(method)
            call = opened(requests, timeout=context.time_remaining())
            try:
                async for data in call:
                    for out in self._responses(method, data):
                        yield out
            except grpc.aio.AioRpcError as error:
                await context.abort(
                    error.code(), error.details() or "", error.trailing_metadata() or ()
                )
            finally:
                call.cancel()

        return grpc.stream_stream_rpc_method_handler(forward)
