"""What a stranger can make a server hold is bounded, and others are served meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from baton.rpc import server as server_module
from baton.rpc.channels import MAX_MESSAGE_BYTES, MAX_METADATA_BYTES, SERVER_OPTIONS
from baton.rpc.server import ServiceServer

HOST = "127.0.0.1"
SERVING = health_pb2.HealthCheckResponse.SERVING


@asynccontextmanager
async def running_server() -> AsyncIterator[ServiceServer]:
    server = ServiceServer(HOST, 0, [])
    await server.start()
    try:
        yield server
    finally:
        await server.drain(0)


@asynccontextmanager
async def health_of(server: ServiceServer) -> AsyncIterator[health_pb2_grpc.HealthStub]:
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(server.address, options=options) as channel:
        yield health_pb2_grpc.HealthStub(channel)


async def refusal_of(call: "grpc.aio.UnaryUnaryCall[object, object]") -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value.code()


async def test_a_small_message_that_unpacks_to_a_huge_one_is_x() -> None:
    async with running_server() as server, health_of(server) as health:
        bomb = health_pb2.HealthCheckRequest(service="a" * (8 * MAX_MESSAGE_BYTES))
        call = health.Check(bomb, compression=grpc.Compression.Gzip, timeout=60)
        assert await refusal_of(call) == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=10)).status == SERVING


async def test_metadata_beyond_its_limit_is_refused() -> None:
    async with running_server() as server, health_of(server) as health:
        request = health_pb2.HealthCheckRequest()
        large = (("session", "x" * MAX_METADATA_BYTES),)
        call = health.Check(request, metadata=large, timeout=10)
        assert await refusal_of(call) == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await health.Check(request, timeout=10)).status == SERVING


@pytest.mark.parametrize("said", [b"", b"PRI * HTTP/2.0\r\n", b"GET / HTTP/1.1\r\n"])
async def test_connections_that_say_nothing_are_closed_and_harm_nobody(
    monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    timeout = ("grpc.server_handshake_timeout_ms", 500)
    monkeypatch.setattr(server_module, "SERVER_OPTIONS", (*SERVER_OPTIONS, timeout))
    async with running_server() as server, health_of(server) as health:
        held = [await asyncio.open_connection(HOST, server.port) for _ in range(100)]
        for _, writer in held:
            writer.write(said)
        assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=10)).status == SERVING
        async with asyncio.timeout(30):
            for reader, writer in held:
                await reader.read()
                writer.close()
