"""Links over real gRPC: many requests on one stream, each with its own life."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from baton.errors import (
    DeadlineError,
    InternalError,
    OverloadedError,
    UnavailableError,
)
from baton.rpc.link import WINDOW_EVENTS, LinkPool
from baton.rpc.link_server import ServedCall, serve_link
from baton.rpc.links import DECODE_LINK
from baton.rpc.server import ServiceServer
from baton.v1 import decode_link_pb2 as frames
from baton.v1 import decode_pb2_grpc

Call = ServedCall[Any, Any]


class Decode(decode_pb2_grpc.DecodeServiceServicer):
    def __init__(self, handler: Callable[[Call], Awaitable[None]]) -> None:
        self.handler = handler

    async def Link(self, request_iterator: Any, context: Any) -> None:
        await serve_link(DECODE_LINK, self.handler, context)


@asynccontextmanager
async def linked(handler: Callable[[Call], Awaitable[None]]) -> AsyncIterator[tuple[Any, Any]]:
    """Yields an opener's link and the server behind it."""
    server = ServiceServer("127.0.0.1", 0, ["baton.v1.DecodeService"])
    decode_pb2_grpc.add_DecodeServiceServicer_to_server(Decode(handler), server.grpc)
    await server.start()
    pool = LinkPool(DECODE_LINK)
    try:
        yield pool.link(server.address), server
    finally:
        await pool.close()
        await server.drain(0)


def start(request_id: str = "r") -> Any:
    return frames.DecodeCommand(start=frames.DecodeStart(request_id=request_id))


def tokens(*ids: int) -> Any:
    return frames.DecodeEvent(tokens=frames.DecodeTokens(output_ids=ids))


async def collect(call: Any) -> list[int]:
    return [i async for event in call for i in event.tokens.output_ids]


async def test_events_arrive_in_order_and_end_well() -> None:
    async def handler(call: Call) -> None:
        for i in range(5):
            await call.send(tokens(i))

    async with linked(handler) as (link, _), link.open(start()) as call:
        assert await collect(call) == [0, 1, 2, 3, 4]


class LeavingPeer:
    """The context of a peer that left while a message to it was on its way."""

    def __init__(self, *commands: Any) -> None:
        self._commands = list(commands)
        self._noticed = asyncio.Event()

    async def read(self) -> Any:
        if self._commands:
            return DECODE_LINK.request(commands=[self._commands.pop(0)])
        await self._noticed.wait()
        return self._end()

    def _end(self) -> Any:
        return grpc.aio.EOF

    async def write(self, message: Any) -> None:
        self._noticed.set()
        raise grpc.aio.InternalError('Failed "execute_batch"')


class StoppedServer(LeavingPeer):
    """The context of a server that stopped while a message was on its way."""

    async def write(self, message: Any) -> None:
        self._noticed.set()
        raise grpc.aio.BaseError("Server already stopped.")

    def _end(self) -> Any:
        raise grpc.aio.BaseError("Server already stopped.")


@pytest.mark.parametrize("kind", [LeavingPeer, StoppedServer])
async def test_link_that_ends_during_a_write_ends_without_an_error(kind: Any) -> None:
    cancelled = asyncio.Event()

    async def handler(call: Call) -> None:
        await call.send(tokens(1))
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    begin = start()
    begin.stream_id, begin.context.window = 1, WINDOW_EVENTS
    peer: Any = kind(begin)
    await serve_link(DECODE_LINK, handler, peer)
    assert cancelled.is_set()


async def test_many_requests_share_one_stream_without_mixing() -> None:
    async def handler(call: Call) -> None:
        base = int(call.start.start.request_id) * 1000
        for i in range(20):
            await call.send(tokens(base + i))
            await asyncio.sleep(0)

    async with linked(handler) as (link, _):
        calls = [link.open(start(str(n))) for n in range(30)]
        results = await asyncio.gather(*(collect(call) for call in calls))
    assert results == [[n * 1000 + i for i in range(20)] for n in range(30)]


async def test_typed_error_reaches_the_opener_with_its_details() -> None:
    async def handler(call: Call) -> None:
        raise OverloadedError("full", reason="KV_POOL_FULL", field="x", retry_after_s=1.5)

    async with linked(handler) as (link, _), link.open(start()) as call:
        with pytest.raises(OverloadedError) as caught:
            await collect(call)
    error = caught.value
    assert (error.reason, error.field, error.retry_after_s) == ("KV_POOL_FULL", "x", 1.5)


async def test_bug_in_one_request_harms_no_other() -> None:
    async def handler(call: Call) -> None:
        if call.start.start.request_id == "bad":
            raise KeyError("bug")
        await call.send(tokens(7))

    async with linked(handler) as (link, _):
        bad, good = link.open(start("bad")), link.open(start("good"))
        with pytest.raises(InternalError):
            await collect(bad)
        assert await collect(good) == [7]


async def test_leaving_the_call_cancels_the_handler() -> None:
    stopped = asyncio.Event()

    async def handler(call: Call) -> None:
        try:
            await call.send(tokens(1))
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with linked(handler) as (link, _):
        async with link.open(start()) as call:
            await anext(call)
        async with asyncio.timeout(5):
            await stopped.wait()


async def test_cancel_returns_only_after_the_handler_stopped() -> None:
    steps: list[str] = []

    async def handler(call: Call) -> None:
        try:
            await call.send(tokens(1))
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            steps.append("stopped")

    async with linked(handler) as (link, _), link.open(start()) as call:
        await anext(call)
        await call.cancel()
        steps.append("confirmed")
    assert steps == ["stopped", "confirmed"]


async def test_stalled_reader_stops_its_own_events_only() -> None:
    sent = {"slow": 0, "fast": 0}

    async def handler(call: Call) -> None:
        name = call.start.start.request_id
        for i in range(WINDOW_EVENTS * 3):
            await call.send(tokens(i))
            sent[name] += 1

    async with linked(handler) as (link, _):
        slow, fast = link.open(start("slow")), link.open(start("fast"))
        assert len(await collect(fast)) == WINDOW_EVENTS * 3
        assert sent["slow"] == WINDOW_EVENTS
        assert len(await collect(slow)) == WINDOW_EVENTS * 3


async def test_further_commands_reach_the_handler() -> None:
    async def handler(call: Call) -> None:
        command = await call.next_command()
        await call.send(tokens(len(command.start.request_id)))

    async with linked(handler) as (link, _), link.open(start()) as call:
        call.send(start("four"))
        assert await collect(call) == [4]


async def test_deadline_ends_the_request_on_both_sides() -> None:
    stopped = asyncio.Event()

    async def handler(call: Call) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with linked(handler) as (link, _), link.open(start(), timeout_s=0.05) as call:
        with pytest.raises(DeadlineError):
            await collect(call)
        async with asyncio.timeout(5):
            await stopped.wait()


async def test_dead_server_ends_every_request_as_unavailable() -> None:
    async def handler(call: Call) -> None:
        await call.send(tokens(1))
        await asyncio.Event().wait()

    async with linked(handler) as (link, server):
        calls = [link.open(start(str(n))) for n in range(3)]
        for call in calls:
            await anext(call)
        await server.drain(0)
        for call in calls:
            with pytest.raises(UnavailableError) as caught:
                await collect(call)
            assert caught.value.reason == "PEER_LOST"
        assert link.is_broken


async def test_broken_opener_cancels_all_it_owned() -> None:
    running: set[str] = set()

    async def handler(call: Call) -> None:
        name = call.start.start.request_id
        running.add(name)
        try:
            await call.send(tokens(1))
            await asyncio.Event().wait()
        finally:
            running.discard(name)

    async with linked(handler) as (link, _):
        for n in range(5):
            await anext(link.open(start(str(n))))
        assert len(running) == 5
        await link.close()
        async with asyncio.timeout(5):
            while running:
                await asyncio.sleep(0.01)


async def test_nobody_listening_is_unavailable() -> None:
    pool = LinkPool(DECODE_LINK)
    try:
        with pytest.raises(UnavailableError):
            await collect(pool.link("127.0.0.1:1").open(start()))
    finally:
        await pool.close()


async def test_idle_links_close_and_reopen_on_use() -> None:
    async def handler(call: Call) -> None:
        await call.send(tokens(1))

    server = ServiceServer("127.0.0.1", 0, ["baton.v1.DecodeService"])
    decode_pb2_grpc.add_DecodeServiceServicer_to_server(Decode(handler), server.grpc)
    await server.start()
    pool = LinkPool(DECODE_LINK, idle_close_s=0)
    try:
        first = pool.link(server.address)
        assert await collect(first.open(start())) == [1]
        await pool.close_idle()
        second = pool.link(server.address)
        assert second is not first
        assert await collect(second.open(start())) == [1]
    finally:
        await pool.close()
        await server.drain(0)


async def test_taken_port_is_refused_at_start() -> None:
    from baton.errors import StartupError

    first = ServiceServer("127.0.0.1", 0, [])
    await first.start()
    try:
        with pytest.raises(StartupError, match="port"):
            await ServiceServer("127.0.0.1", first.port, []).start()
    finally:
        await first.drain(0)


async def test_health_follows_readiness() -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    server = ServiceServer("127.0.0.1", 0, ["baton.v1.DecodeService"])
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def status(name: str) -> Any:
            return (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status

        assert await status("") == health_pb2.HealthCheckResponse.SERVING
        assert await status("baton.v1.DecodeService") == health_pb2.HealthCheckResponse.NOT_SERVING
        await server.set_ready(True)
        assert await status("baton.v1.DecodeService") == health_pb2.HealthCheckResponse.SERVING
    await server.drain(0)
