"""Workers, admission and Redis go away in the middle: no token lost, none sent twice."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from baton.config import Config
from baton.errors import BatonError, InternalError, OverloadedError, UnavailableError
from baton.rpc.link_server import ServedCall
from baton.rpc.server import Listening
from baton.state.records import WorkerRecord, WorkerRole
from baton.state.registry import Registration
from baton.v1 import router_pb2, router_pb2_grpc, types_pb2
from services.router.app import RouterApp, running_router
from tests.router.test_router_service import refusal, setup
from tests.support.control_plane import (
    Call,
    ControlPlane,
    FakeDecodeWorker,
    Script,
    control_plane,
    token_at,
)
from tests.support.mesh import Answer, Client, greedy
from tests.support.redis import running_redis
from tests.support.waiting import eventually

PROMPT = [5] * 20


def expected(tokens: int) -> list[int]:
    return [token_at(len(PROMPT) + i) for i in range(tokens)]


def failing(error: BatonError, after: int = 0) -> Script:
    """Fails each request with `error` after some tokens."""

    async def script(worker: FakeDecodeWorker, call: Call) -> None:
        await worker.send_prefilled(call)
        for _ in range(after):
            await worker.send_token(call)
        raise error

    return script


async def client_of(plane: ControlPlane) -> Client:
    await plane.admission()
    return await plane.client(await plane.router())


async def test_killed_worker_mid_stream_is_replaced_without_repeating_tokens(
    redis_url: str,
) -> None:
    async with control_plane(redis_url) as plane:
        workers = {name: await plane.decode(name) for name in ("decode-0", "decode-1")}
        for worker in workers.values():
            worker.allow(7)
        client = await client_of(plane)
        killed: list[str] = []

        async def kill_after_five(answer: Answer) -> None:
            if killed or len(answer.output_ids) < 5:
                return
            (name,) = [name for name, worker in workers.items() if worker.active]
            killed.append(name)
            await workers[name].die()
            for worker in workers.values():
                worker.allow(None)

        answer = await client.generate(
            input_ids=PROMPT, sampling_params=greedy(30), on_chunk=kill_after_five
        )
        assert answer.output_ids == expected(30)
        assert answer.complete.usage.completion_tokens == 30
        assert answer.placement.migrations == 1
        (survivor,) = [it for name, it in workers.items() if name not in killed]
        assert answer.placement.decode_worker_id == survivor.worker_id
        (start,) = survivor.starts
        assert list(start.input_ids) == [*PROMPT, *expected(start.resumed_tokens)]
        assert start.sampling_params.max_tokens == 30 - start.resumed_tokens
        assert start.resumed_tokens >= 5


@pytest.mark.parametrize(
    ("error", "after", "migrations"),
    [
        (UnavailableError("gone", reason="ENGINE_DOWN"), 0, 1),
        (UnavailableError("gone", reason="ENGINE_DOWN"), 4, 1),
        (InternalError("step", reason="STEP_FAILED"), 4, 1),
        (OverloadedError("full", reason="KV_POOL_FULL"), 0, 0),
    ],
)
async def test_failed_worker_is_left_for_another_one(
    redis_url: str, error: BatonError, after: int, migrations: int
) -> None:
    async with control_plane(redis_url) as plane:
        bad = await plane.decode("decode-bad", failing(error, after))
        good = await plane.decode("decode-good")
        await good.publish(decoding_requests=40)  # so that the bad one is tried first
        client = await client_of(plane)
        answer = await client.generate(input_ids=PROMPT, sampling_params=greedy(10))
        assert answer.output_ids == expected(10)
        assert answer.placement.migrations == migrations
        assert (len(bad.starts), len(good.starts)) == (1, 1)


async def test_lost_worker_is_avoided_by_the_next_request(redis_url: str) -> None:
    async with control_plane(redis_url) as plane:
        error = UnavailableError("gone", reason="ENGINE_DOWN")
        bad = await plane.decode("decode-bad", failing(error))
        good = await plane.decode("decode-good")
        await good.publish(decoding_requests=40)
        client = await client_of(plane)
        for _ in range(3):
            await client.generate(input_ids=PROMPT, sampling_params=greedy(2))
        assert len(bad.starts) == 1


async def test_tries_are_bounded(redis_url: str) -> None:
    async with control_plane(redis_url) as plane:
        error = UnavailableError("gone", reason="ENGINE_DOWN")
        workers = [await plane.decode(f"decode-{i}", failing(error, after=1)) for i in range(5)]
        client = await client_of(plane)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.generate(input_ids=PROMPT, sampling_params=greedy(10))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert sum(len(worker.starts) for worker in workers) == 3


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (UnavailableError("x", reason="GONE"), grpc.StatusCode.UNAVAILABLE, "NO_WORKER"),
        (
            OverloadedError("x", reason="KV_POOL_FULL", retry_after_s=0.5),
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "KV_POOL_FULL",
        ),
        (InternalError("bug", reason="BUG"), grpc.StatusCode.INTERNAL, "BUG"),
    ],
)
async def test_failure_of_the_only_worker_reaches_the_client(
    redis_url: str, error: BatonError, code: grpc.StatusCode, reason: str
) -> None:
    async with setup(redis_url, failing(error)) as mesh:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await mesh.client.generate(input_ids=PROMPT)
        assert caught.value.code() == code
        assert refusal(caught).reason == reason
        await eventually(mesh.is_clean)


async def test_worker_lost_after_its_last_token_needs_no_other_one(redis_url: str) -> None:
    error = UnavailableError("gone", reason="ENGINE_DOWN")
    async with setup(redis_url, failing(error, after=6)) as mesh:
        answer = await mesh.client.generate(input_ids=PROMPT, sampling_params=greedy(6))
        assert answer.output_ids == expected(6)
        assert answer.complete.finish_reason == types_pb2.FINISH_REASON_LENGTH
        assert answer.placement.migrations == 0

        params = greedy(9, stop_token_ids=[expected(6)[-1]])
        stopped = await mesh.client.generate(input_ids=PROMPT, sampling_params=params)
        assert stopped.complete.finish_reason == types_pb2.FINISH_REASON_STOP


@pytest.mark.parametrize("tokens", [0, 3])
async def test_stream_that_ends_without_a_finish_is_an_error(redis_url: str, tokens: int) -> None:
    async def script(worker: FakeDecodeWorker, call: Call) -> None:
        await worker.send_prefilled(call)
        for _ in range(tokens):
            await worker.send_token(call)

    async with setup(redis_url, script) as mesh:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await mesh.client.generate(input_ids=PROMPT)
        assert caught.value.code() == grpc.StatusCode.INTERNAL


async def test_finish_without_any_token_is_an_error(redis_url: str) -> None:
    async def script(worker: FakeDecodeWorker, call: Call) -> None:
        await worker.send_prefilled(call)
        await worker.send_finished(call, types_pb2.FINISH_REASON_STOP)

    async with setup(redis_url, script) as mesh:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await mesh.client.generate(input_ids=PROMPT)
        assert caught.value.code() == grpc.StatusCode.INTERNAL


async def test_stop_string_across_a_migration_is_found(redis_url: str) -> None:
    def speaking(text: str, error: BatonError | None) -> Script:
        async def script(worker: FakeDecodeWorker, call: ServedCall[Any, Any]) -> None:
            await worker.send_prefilled(call)
            for token in worker.model.tokenizer.encode(text).ids:
                await worker.send_tokens(call, [token])
            if error is not None:
                raise error
            await worker.send_finished(call, types_pb2.FINISH_REASON_STOP)

        return script

    async with control_plane(redis_url) as plane:
        error = UnavailableError("gone", reason="ENGINE_DOWN")
        await plane.decode("decode-bad", speaking("one two thr", error))
        good = await plane.decode("decode-good", speaking("ee four five", None))
        await good.publish(decoding_requests=40)
        client = await client_of(plane)
        answer = await client.generate(input_ids=PROMPT, sampling_params=greedy(99, stop=["three"]))
        assert answer.text == "one two "
        assert answer.placement.migrations == 1


async def test_death_of_admission_does_not_touch_running_requests(redis_url: str) -> None:
    async with setup(redis_url) as mesh:
        mesh.worker.allow(3)
        running = asyncio.create_task(
            mesh.client.generate(input_ids=PROMPT, sampling_params=greedy(8))
        )
        await eventually(lambda: mesh.worker.sent == 3)
        address = mesh.admission.address
        await mesh.router.permits._links.link(address).close()  # the link breaks under them
        mesh.worker.allow(None)
        assert (await running).output_ids == expected(8)
        again = await mesh.client.generate(input_ids=PROMPT, sampling_params=greedy(2))
        assert len(again.output_ids) == 2
        await eventually(mesh.is_clean)


async def test_dead_admission_lets_requests_through(redis_url: str) -> None:
    async with control_plane(redis_url) as plane:
        await plane.decode("decode-0")
        async with dead_admission(plane):
            router = await plane.router()
            client = await plane.client(router)
            answer = await client.generate(input_ids=PROMPT, sampling_params=greedy(2))
            assert len(answer.output_ids) == 2
            assert router.permits.failed_open.total() == 1


def dead_admission(plane: ControlPlane) -> Registration:
    """Registers an admission service at an address where nobody listens."""
    record = WorkerRecord("admission-dead", "i", WorkerRole.ADMISSION, "127.0.0.1:1", time.time())
    return Registration(plane.redis, record)


async def test_requests_go_on_while_redis_is_away(tmp_path: Path) -> None:
    with running_redis(tmp_path) as server:
        async with setup(server.url) as mesh:
            await mesh.client.generate(input_ids=PROMPT, sampling_params=greedy(2))
            server.stop()
            await eventually(lambda: not mesh.router.fleet.connected)
            answer = await mesh.client.generate(input_ids=PROMPT, sampling_params=greedy(4))
            assert answer.output_ids == expected(4)
            assert (await mesh.client.fleet()).state_age.ToNanoseconds() > 0
            await eventually(mesh.is_clean)


async def test_drain_lets_running_streams_finish(redis_url: str) -> None:
    async with control_plane(redis_url) as plane:
        worker = await plane.decode("decode-0")
        worker.allow(3)
        async with router_alone(plane) as (router, client):
            running = asyncio.create_task(
                client.generate(input_ids=PROMPT, sampling_params=greedy(9))
            )
            await eventually(lambda: worker.sent == 3)
            refused = asyncio.create_task(_refused_once_draining(client, router.address))
            worker_goes_on = asyncio.create_task(_allow_after(refused, worker))
        # Leaving the block drained the router.
        assert (await running).output_ids == expected(9)
        await worker_goes_on


async def _refused_once_draining(client: Client, address: str) -> None:
    async def is_refused() -> bool:
        try:
            async with grpc.aio.insecure_channel(address) as channel:
                stub = router_pb2_grpc.RouterServiceStub(channel)
                await stub.ListModels(router_pb2.ListModelsRequest(), timeout=1)
        except grpc.aio.AioRpcError as error:
            return error.code() is grpc.StatusCode.UNAVAILABLE
        return False

    await eventually(is_refused)


async def _allow_after(refused: "asyncio.Task[None]", worker: FakeDecodeWorker) -> None:
    await refused
    worker.allow(None)


@asynccontextmanager
async def router_alone(plane: ControlPlane) -> AsyncIterator[tuple[RouterApp, Client]]:
    """Runs a router whose end the test chooses."""
    listening = Listening("127.0.0.1", 0, "router-alone")
    async with running_router(
        Config(), listening, plane.model, plane.redis, plane.telemetry
    ) as router:
        yield router, await plane.client(router)


async def test_two_routers_serve_the_same_fleet(redis_url: str) -> None:
    async with control_plane(redis_url) as plane:
        await plane.decode("decode-0")
        admission = await plane.admission()
        routers = [await plane.router(name=f"router-{i}") for i in range(2)]
        clients = [await plane.client(router) for router in routers]
        answers = await asyncio.gather(
            *(it.generate(input_ids=PROMPT, sampling_params=greedy(3)) for it in clients)
        )
        assert [answer.output_ids for answer in answers] == [expected(3)] * 2
        await eventually(lambda: admission.desk.is_empty)
