"""Errors cross a real gRPC server as statuses and come back as what they were."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
from google.rpc import code_pb2

from baton import errors
from baton.client import ROUTER_UNREACHABLE, Prompt, RequestOptions, RouterClient
from baton.rpc import status
from baton.rpc.link_server import ServedCall, serve_link
from baton.rpc.links import ROUTER_LINK
from baton.rpc.server import ServiceServer, statuses
from baton.v1 import link_pb2, router_pb2, router_pb2_grpc

CODES = {
    errors.BatonError: grpc.StatusCode.INTERNAL,
    errors.InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UnknownModelError: grpc.StatusCode.NOT_FOUND,
    errors.UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    errors.ForbiddenError: grpc.StatusCode.PERMISSION_DENIED,
    errors.OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.UnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.CancelledByPeerError: grpc.StatusCode.CANCELLED,
    errors.PreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.RegistrationError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.TransferError: grpc.StatusCode.ABORTED,
    errors.KvMismatchError: grpc.StatusCode.DATA_LOSS,
    errors.InternalError: grpc.StatusCode.INTERNAL,
}


def tree(root: type[errors.BatonError]) -> Iterator[type[errors.BatonError]]:
    yield root
    for kind in root.__subclasses__():
        yield from tree(kind)


KINDS = list(tree(errors.BatonError))

ARRIVES_AS = {
    errors.BatonError: errors.InternalError,
    errors.RegistrationError: errors.PreconditionError,
}
"""Where classes share a code; every other class comes back as itself."""


class FailingRouter(router_pb2_grpc.RouterServiceServicer):
    """Refuses everything with one error."""

    def __init__(self) -> None:
        self.error = errors.BatonError("not set")

    async def ListModels(self, request: Any, context: Any) -> Any:
        async with statuses(context):
            raise self.error

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async with statuses(context):
            yield router_pb2.GenerateResponse(chunk=router_pb2.GenerateChunk(text="a"))
            raise self.error

    async def Link(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        async def serve(call: ServedCall[Any, Any]) -> None:
            await call.send(router_pb2.RouterEvent(chunk=router_pb2.GenerateChunk(text="a")))
            raise self.error

        await serve_link(ROUTER_LINK, serve, context)


@pytest.fixture
async def router() -> AsyncIterator[tuple[FailingRouter, str]]:
    servicer = FailingRouter()
    server = ServiceServer("127.0.0.1", 0, ["baton.v1.RouterService"])
    router_pb2_grpc.add_RouterServiceServicer_to_server(servicer, server.grpc)
    await server.start()
    yield servicer, server.address
    await server.drain(0)


def test_every_error_class_has_a_code() -> None:
    assert set(CODES) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
async def test_error_comes_back_with_class_and_every_fact(
    router: tuple[FailingRouter, str], kind: type[errors.BatonError]
) -> None:
    servicer, address = router
    servicer.error = kind("what to do", reason="SOME_REASON", field="text", retry_after_s=1.25)
    async with RouterClient(address) as client:
        with pytest.raises(errors.BatonError) as caught:
            await client.models()
    found = caught.value
    assert type(found) is ARRIVES_AS.get(kind, kind)
    assert (found.message, found.reason, found.field) == ("what to do", "SOME_REASON", "text")
    assert found.retry_after_s == 1.25
    assert isinstance(found.__cause__, grpc.aio.AioRpcError)
    assert found.__cause__.code() is CODES[kind]


@pytest.mark.parametrize("kind", KINDS)
async def test_error_without_facts_keeps_its_own_reason(
    router: tuple[FailingRouter, str], kind: type[errors.BatonError]
) -> None:
    servicer, address = router
    servicer.error = kind("what to do")
    async with RouterClient(address) as client:
        with pytest.raises(errors.BatonError) as caught:
            await client.models()
    assert caught.value.reason == kind.default_reason
    assert (caught.value.field, caught.value.retry_after_s) == ("", None)


@pytest.mark.parametrize("kind", KINDS)
def test_end_frame_keeps_every_fact(kind: type[errors.BatonError]) -> None:
    end = status.to_end(kind("what to do", reason="SOME_REASON", field="text", retry_after_s=0.5))
    found = status.from_end(end)
    assert type(found) is ARRIVES_AS.get(kind, kind)
    assert (found.message, found.reason, found.field) == ("what to do", "SOME_REASON", "text")
    assert found.retry_after_s == 0.5


def test_end_frame_of_success_is_no_error() -> None:
    assert status.from_end(link_pb2.LinkEnd(code=code_pb2.OK)) is None


async def test_error_in_the_middle_of_a_stream_arrives_after_the_chunks(
    router: tuple[FailingRouter, str],
) -> None:
    servicer, address = router
    servicer.error = errors.UnavailableError("a worker died", reason="WORKER_DIED")
    seen: list[Any] = []

    async def stream(client: RouterClient) -> None:
        async for part in client.generate(Prompt(text="x"), RequestOptions(timeout_s=5)):
            seen.append(part)  # noqa: PERF401 - what came before the error counts

    async with RouterClient(address) as client:
        with pytest.raises(errors.UnavailableError, match="a worker died") as caught:
            await stream(client)
    assert len(seen) == 1
    assert caught.value.reason == "WORKER_DIED"


async def test_message_beyond_ascii_survives(router: tuple[FailingRouter, str]) -> None:
    servicer, address = router
    servicer.error = errors.InvalidRequestError("stop “é” is empty\nsecond line")
    async with RouterClient(address) as client:
        with pytest.raises(errors.InvalidRequestError) as caught:
            await client.models()
    assert caught.value.message == "stop “é” is empty\nsecond line"


async def test_nobody_at_the_address_is_said_so() -> None:
    async with RouterClient("127.0.0.1:1") as client:
        with pytest.raises(errors.UnavailableError, match=r"at 127.0.0.1:1 \(") as caught:
            await client.fleet()
    assert caught.value.reason == ROUTER_UNREACHABLE
