"""Calling a running mesh as a plain gRPC client, and looking into its processes."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from baton.rpc.channels import MAX_MESSAGE_BYTES, open_channel
from baton.rpc.identity import TARGET_NAME, Identity
from baton.v1 import (
    admission_pb2,
    admission_pb2_grpc,
    decode_pb2,
    decode_pb2_grpc,
    prefill_pb2,
    prefill_pb2_grpc,
    router_pb2,
    router_pb2_grpc,
    types_pb2,
)


@dataclass
class Answer:
    """Everything that one Generate stream said."""

    text: str = ""
    output_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    complete: Any = None

    @property
    def placement(self) -> Any:
        return self.complete.placement


def greedy(max_tokens: int = 32, **more: Any) -> types_pb2.SamplingParams:
    """Returns parameters whose answer is the same on every worker."""
    return types_pb2.SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True, **more)


class Client:
    """A client of one router."""

    def __init__(self, address: str) -> None:
        self.channel = _client_channel(address)
        self.stub = router_pb2_grpc.RouterServiceStub(self.channel)

    async def close(self) -> None:
        await self.channel.close()

    async def generate(
        self,
        *,
        timeout_s: float = 60.0,
        metadata: Sequence[tuple[str, str]] = (),
        on_chunk: Callable[[Answer], Awaitable[None]] | None = None,
        **request: Any,
    ) -> Answer:
        """Runs a request to its end; `on_chunk` sees the answer after each part."""
        answer = Answer()
        stream = self.stub.Generate(
            router_pb2.GenerateRequest(**request), timeout=timeout_s, metadata=tuple(metadata)
        )
        async for response in stream:
            assert answer.complete is None, "GenerateComplete must be the last message"
            if response.WhichOneof("part") == "chunk":
                answer.text += response.chunk.text
                answer.output_ids += response.chunk.output_ids
                answer.logprobs += response.chunk.logprobs
                if on_chunk is not None:
                    await on_chunk(answer)
            else:
                answer.complete = response.complete
        assert answer.complete is not None, "a stream that ends well carries GenerateComplete"
        return answer

    async def fleet(self) -> Any:
        return await self.stub.GetFleet(router_pb2.GetFleetRequest(), timeout=5)


def _client_channel(address: str) -> grpc.aio.Channel:
    """Returns a channel that sends more than the mesh takes, so that tests can see it refused."""
    limit = ("grpc.max_send_message_length", 4 * MAX_MESSAGE_BYTES)
    identity = Identity.of()
    if identity is None:
        return grpc.aio.insecure_channel(address, options=[limit])
    return grpc.aio.secure_channel(
        address, identity.channel_credentials(), options=[limit, TARGET_NAME]
    )


async def worker_stats(address: str, role: str) -> Any:
    """Returns a worker's own figures of this moment."""
    state: Any
    async with open_channel(address) as channel:
        if role == "prefill":
            stub = prefill_pb2_grpc.PrefillServiceStub(channel)
            state = await stub.GetState(prefill_pb2.PrefillServiceGetStateRequest(), timeout=5)
        else:
            decode = decode_pb2_grpc.DecodeServiceStub(channel)
            state = await decode.GetState(decode_pb2.DecodeServiceGetStateRequest(), timeout=5)
    return state.worker.stats


async def admission_state(address: str) -> Any:
    """Returns the permits and queues of an admission service."""
    async with open_channel(address) as channel:
        stub = admission_pb2_grpc.AdmissionServiceStub(channel)
        return await stub.GetState(admission_pb2.AdmissionServiceGetStateRequest(), timeout=5)


def is_clean(stats: Any) -> bool:
    """Tells whether a worker holds nothing for anybody, and its books balance."""
    total = stats.kv_blocks_free + stats.kv_blocks_cached + stats.kv_blocks_owned
    assert total == stats.kv_blocks_total, stats
    return not (stats.kv_blocks_owned or stats.kv_leases or stats.decoding_requests)


def seconds(parts: Any) -> dict[str, float]:
    """Returns a TimingBreakdown as seconds by name."""
    return {
        descriptor.name: value.ToNanoseconds() / 1e9 for descriptor, value in parts.ListFields()
    }
