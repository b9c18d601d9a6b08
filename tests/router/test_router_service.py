"""Requests through a real router and admission: answers, accounts, refusals, cancels."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from baton.config import Config, Qos
from baton.errors import BatonError
from baton.requests import Priority
from baton.rpc.status import from_rpc_error
from baton.state.records import WorkerRole, WorkerStats
from baton.state.registry import Registration
from baton.v1 import decode_link_pb2, router_pb2, router_pb2_grpc, types_pb2
from services.admission.app import AdmissionApp
from services.router.app import RouterApp
from services.router.server import SERVICE
from tests.support.control_plane import (
    Call,
    ControlPlane,
    FakeDecodeWorker,
    control_plane,
    token_at,
)
from tests.support.mesh import Client, greedy, seconds
from tests.support.waiting import eventually


@dataclass
class Setup:
    plane: ControlPlane
    worker: FakeDecodeWorker
    admission: AdmissionApp
    router: RouterApp
    client: Client

    def is_clean(self) -> bool:
        """Nobody holds anything for anybody."""
        return (
            not self.worker.active
            and self.admission.desk.is_empty
            and self.router.credits.total == 0
            and self.router.metrics.active == 0
        )


@asynccontextmanager
async def setup(
    redis_url: str, script: Any = None, config: Config | None = None
) -> AsyncIterator[Setup]:
    async with control_plane(redis_url) as plane:
        worker = await plane.decode("decode-0", script)
        admission = await plane.admission(config)
        router = await plane.router(config)
        client = await plane.client(router)
        yield Setup(plane, worker, admission, router, client)


def refusal(caught: pytest.ExceptionInfo[grpc.aio.AioRpcError]) -> BatonError:
    """Returns what the router said, with reason, field and retry time."""
    return from_rpc_error(caught.value)


async def test_answer_streams_with_text_usage_and_placement(redis_url: str) -> None:
    async with setup(redis_url) as mesh:
        answer = await mesh.client.generate(
            input_ids=[5] * 20, sampling_params=greedy(6, logprobs=True), request_id="mine"
        )
        assert answer.output_ids == [token_at(20 + i) for i in range(6)]
        assert answer.logprobs == pytest.approx([-0.5] * 6)
        assert answer.text == mesh.plane.model.tokenizer.decode(answer.output_ids)
        complete = answer.complete
        assert (complete.request_id, complete.model) == ("mine", "baton-tiny")
        assert complete.finish_reason == types_pb2.FINISH_REASON_LENGTH
        assert (complete.usage.prompt_tokens, complete.usage.completion_tokens) == (20, 6)
        assert answer.placement.decode_worker_id == "decode-0"
        assert answer.placement.prefill_mode == types_pb2.PREFILL_MODE_LOCAL
        assert answer.placement.prefill_reason == "SHORT_PREFILL"
        assert answer.placement.migrations == 0
        await eventually(mesh.is_clean)


async def test_worker_gets_what_the_client_asked_for(redis_url: str) -> None:
    async with setup(redis_url) as mesh:
        params = types_pb2.SamplingParams(
            max_tokens=3, temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, seed=0, stop=["~~"]
        )
        await mesh.client.generate(
            input_ids=[5, 6, 7],
            sampling_params=params,
            priority=types_pb2.PRIORITY_HIGH,
            cache_salt="salt",
        )
        (start,) = mesh.worker.starts
        assert list(start.input_ids) == [5, 6, 7]
        assert (start.priority, start.cache_salt) == (types_pb2.PRIORITY_HIGH, "salt")
        assert (start.resumed_tokens, len(start.prefill_candidates)) == (0, 0)
        got = start.sampling_params
        for name in ("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed"):
            assert got.HasField(name)
            assert getattr(got, name) == getattr(params, name)
        assert list(got.stop) == ["~~"]


async def test_timing_parts_add_up_to_the_ttft(redis_url: str) -> None:
    async def script(worker: FakeDecodeWorker, call: Call) -> None:
        await asyncio.sleep(0.03)  # the time that the parts below account for
        await worker.send_prefilled(
            call,
            decode_admit_s=0.001,
            prefill_queue_s=0.004,
            prefill_compute_s=0.02,
            kv_transfer_s=0.005,
            cached_tokens=2,
        )
        for _ in range(3):
            await worker.send_token(call)
        await worker.send_finished(call, types_pb2.FINISH_REASON_STOP)

    async with setup(redis_url, script) as mesh:
        answer = await mesh.client.generate(text="The import statement")
        timing = seconds(answer.complete.timing)
        ttft, tpot, total = timing.pop("ttft"), timing.pop("tpot"), timing.pop("total")
        parts = answer.complete.timing
        names = [it.name for it in parts.DESCRIPTOR.fields][:8]
        assert sum(getattr(parts, name).ToNanoseconds() for name in names) == (
            parts.ttft.ToNanoseconds()
        )
        assert timing["prefill_compute"] == pytest.approx(0.02)
        assert timing["kv_transfer"] == pytest.approx(0.005)
        assert 0.03 <= ttft <= total
        assert tpot == pytest.approx((total - ttft) / 2, rel=0.5)
        assert answer.complete.usage.cached_tokens == 2


async def test_stages_told_after_the_first_token_replace_the_first_account(redis_url: str) -> None:
    async def script(worker: FakeDecodeWorker, call: Call) -> None:
        await asyncio.sleep(0.03)  # the time that the parts below account for
        await worker.send_prefilled(call, decode_admit_s=0.001, kv_transfer_s=0.025)
        await worker.send_token(call)
        stages = {"prefill_queue_s": 0.004, "prefill_compute_s": 0.02, "kv_transfer_s": 0.001}
        told = decode_link_pb2.DecodeStages(**stages)
        await call.send(decode_link_pb2.DecodeEvent(stages=told))
        await worker.send_finished(call, types_pb2.FINISH_REASON_STOP)

    async with setup(redis_url, script) as mesh:
        answer = await mesh.client.generate(text="The import statement")

    timing = seconds(answer.complete.timing)
    ttft, _, _ = timing.pop("ttft"), timing.pop("total"), timing.pop("tpot", 0.0)
    assert timing["prefill_queue"] == pytest.approx(0.004)
    assert timing["prefill_compute"] == pytest.approx(0.02)
    assert timing["kv_transfer"] == pytest.approx(0.001)
    assert sum(timing.values()) == pytest.approx(ttft, abs=1e-6)


async def test_stop_string_across_chunks_is_cut_and_stops_the_worker(redis_url: str) -> None:
    text = "one two three four five six seven"

    async def script(worker: FakeDecodeWorker, call: Call) -> None:
        await worker.send_prefilled(call)
        for token in worker.model.tokenizer.encode(text).ids:
            await worker.send_tokens(call, [token])
        await asyncio.Event().wait()  # goes on until somebody stops it

    async with setup(redis_url, script) as mesh:
        answer = await mesh.client.generate(
            input_ids=[5], sampling_params=greedy(200, stop=["~~", "hree fo"])
        )
        assert answer.text == "one two t"
        assert answer.complete.finish_reason == types_pb2.FINISH_REASON_STOP
        assert answer.complete.usage.completion_tokens == len(answer.output_ids) > 3
        await eventually(mesh.is_clean)
        assert mesh.worker.cancelled == 1


async def test_text_held_back_for_a_stop_string_comes_at_the_end(redis_url: str) -> None:
    async def script(worker: FakeDecodeWorker, call: Call) -> None:
        await worker.send_prefilled(call)
        await worker.send_tokens(call, worker.model.tokenizer.encode("one two").ids)
        await worker.send_finished(call, types_pb2.FINISH_REASON_STOP)

    async with setup(redis_url, script) as mesh:
        answer = await mesh.client.generate(
            input_ids=[5], sampling_params=greedy(9, stop=["two three"])
        )
        assert answer.text == "one two"


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({}, grpc.StatusCode.INVALID_ARGUMENT, "text"),
        ({"input_ids": [4096]}, grpc.StatusCode.INVALID_ARGUMENT, "input_ids"),
        ({"input_ids": [5] * 8192}, grpc.StatusCode.INVALID_ARGUMENT, "input_ids"),
        ({"text": "a" * 200_000}, grpc.StatusCode.INVALID_ARGUMENT, "text"),
        ({"text": "a", "model": "gpt-9"}, grpc.StatusCode.NOT_FOUND, "model"),
    ],
)
async def test_bad_input_is_a_rich_status(
    redis_url: str, fields: dict[str, Any], code: grpc.StatusCode, field: str
) -> None:
    async with setup(redis_url) as mesh:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await mesh.client.generate(**fields)
        assert caught.value.code() == code
        assert refusal(caught).field == field
        assert not mesh.worker.starts


async def test_message_over_the_size_limit_is_refused(redis_url: str) -> None:
    async with setup(redis_url) as mesh:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await mesh.client.generate(text="a" * 9_000_000)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_cancel_reaches_the_worker_and_ends_the_permit(redis_url: str) -> None:
    async with setup(redis_url) as mesh:
        mesh.worker.allow(2)
        stream = mesh.client.stub.Generate(
            router_pb2.GenerateRequest(input_ids=[5], sampling_params=greedy(50))
        )
        await stream.read()
        await eventually(lambda: mesh.admission.desk.load.decode_permits == 1)
        stream.cancel()
        await eventually(mesh.is_clean)
        assert mesh.worker.cancelled == 1


async def test_deadline_ends_the_request_everywhere(redis_url: str) -> None:
    async with setup(redis_url) as mesh:
        mesh.worker.allow(1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await mesh.client.generate(input_ids=[5], sampling_params=greedy(50), timeout_s=0.2)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        await eventually(mesh.is_clean)
        left_s = mesh.worker.calls[0].time_left_s()
        assert left_s is not None
        assert left_s <= 0.2


async def test_stalled_client_stalls_only_itself(redis_url: str) -> None:
    async def script(worker: FakeDecodeWorker, call: Call) -> None:
        if len(call.start.start.input_ids) > 1:
            await worker.generate(call)
        await worker.send_prefilled(call)
        while True:  # more than all buffers on the way hold
            worker.sent += 1
            await worker.send_tokens(call, [token_at(worker.sent)] * 500)

    async with setup(redis_url, script) as mesh:
        # A window that does not grow, as a client on a slow line has it.
        options = [("grpc.http2.bdp_probe", 0)]
        async with grpc.aio.insecure_channel(mesh.router.address, options=options) as channel:
            stalled = router_pb2_grpc.RouterServiceStub(channel).Generate(
                router_pb2.GenerateRequest(input_ids=[5], sampling_params=greedy(8000))
            )
            await stalled.read()
            before = -1
            while before != mesh.worker.sent:  # until flow control stopped the worker's sending
                before = mesh.worker.sent
                await asyncio.sleep(0.1)
            others = await asyncio.gather(
                *(
                    mesh.client.generate(input_ids=[5] * (i + 2), sampling_params=greedy(40))
                    for i in range(8)
                )
            )
            assert [len(answer.output_ids) for answer in others] == [40] * 8
            await eventually(lambda: mesh.worker.active == 1)
            stalled.cancel()
            await eventually(mesh.is_clean)


async def test_rejection_of_admission_reaches_the_client(redis_url: str) -> None:
    qos = Qos.model_validate({"tenants": {"default": {"concurrent": 3}}})
    async with setup(redis_url, config=Config(qos=qos)) as mesh:
        mesh.worker.allow(0)
        streams = [start(mesh.client) for _ in range(3)]
        await eventually(lambda: mesh.worker.active == 3)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await mesh.client.generate(input_ids=[5])
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refusal(caught).reason == "TENANT_LIMIT"
        assert refusal(caught).retry_after_s is not None
        for stream in streams:
            stream.cancel()
        await eventually(mesh.is_clean)


async def test_waiting_request_is_placed_after_its_grant(redis_url: str) -> None:
    """Late binding: what counts is the fleet when the permit comes, not when it was asked for."""
    async with setup(redis_url) as mesh:
        second = await mesh.plane.decode("decode-1")
        await eventually(lambda: mesh.admission.desk.load.decode_workers == 2)
        for worker in (mesh.worker, second):
            worker.allow(0)
        held = [start(mesh.client) for _ in range(128)]
        await eventually(lambda: mesh.worker.active + second.active == 128)
        await second.publish(decoding_requests=500)  # decode-0 is the better one now
        waiting = start(mesh.client)
        await eventually(lambda: mesh.admission.desk.load.waiting_ahead == 1)
        await mesh.worker.publish(draining=True)
        await eventually(lambda: mesh.admission.desk.load.decode_workers == 1)
        await eventually(lambda: is_draining(mesh.router, "decode-0"))
        before = len(second.starts)
        for stream in held:
            stream.cancel()
        await eventually(lambda: len(second.starts) == before + 1)
        waiting.cancel()
        await eventually(mesh.is_clean)


def start(client: Client) -> Any:
    """Starts a request whose answer nobody reads yet."""
    request = router_pb2.GenerateRequest(input_ids=[5], sampling_params=greedy(5))
    return client.stub.Generate(request)


def is_draining(router: RouterApp, worker_id: str) -> bool:
    view = router.fleet.worker(worker_id)
    return view is not None and view.stats is not None and view.stats.draining


async def test_without_admission_requests_run_and_are_counted(redis_url: str) -> None:
    async with control_plane(redis_url) as plane:
        await plane.decode("decode-0")
        router = await plane.router()
        answer = await (await plane.client(router)).generate(
            input_ids=[5], sampling_params=greedy(3)
        )
        assert len(answer.output_ids) == 3
        assert router.permits.failed_open.total() == 1


async def test_without_a_decode_worker_the_router_is_not_ready_and_says_so(redis_url: str) -> None:
    async with control_plane(redis_url) as plane:
        router = await plane.router()
        client = await plane.client(router)
        health = health_pb2_grpc.HealthStub(client.channel)

        async def is_serving() -> bool:
            request = health_pb2.HealthCheckRequest(service=SERVICE)
            response = await health.Check(request, timeout=5)  # type: ignore[attr-defined]
            return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

        assert not await is_serving()
        assert not (await client.stub.ListModels(router_pb2.ListModelsRequest())).models
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.generate(text="a")
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert refusal(caught).reason == "NO_WORKER"
        assert refusal(caught).retry_after_s is not None
        await plane.decode("decode-0")
        await eventually(is_serving)
        (model,) = (await client.stub.ListModels(router_pb2.ListModelsRequest())).models
        assert (model.name, model.context_length, model.block_size) == ("baton-tiny", 8192, 16)


async def test_siblings_meet_on_one_worker_before_its_cache_is_known(redis_url: str) -> None:
    async with setup(redis_url) as mesh:
        second = await mesh.plane.decode("decode-1")
        for worker in (mesh.worker, second):
            await eventually(lambda it=worker: has_stats(mesh.router, it.worker_id))  # type: ignore[misc]
            await eventually(lambda it=worker: it.incarnation in mesh.router.index)  # type: ignore[misc]
        prompt = list(range(100, 200))
        answers = [
            await mesh.client.generate(input_ids=[*prompt, i], sampling_params=greedy(1))
            for i in range(6)
        ]
        assert len({answer.placement.decode_worker_id for answer in answers}) == 1
        salted = [
            await mesh.client.generate(
                input_ids=prompt, sampling_params=greedy(1), cache_salt=str(i)
            )
            for i in range(12)
        ]
        assert len({answer.placement.decode_worker_id for answer in salted}) == 2


async def test_prefill_workers_are_offered_best_first(redis_url: str) -> None:
    async with setup(redis_url) as mesh:
        for number, queued in enumerate((4, 0, 2, 6)):
            record = replace(
                mesh.worker.record(),
                worker_id=f"prefill-{number}",
                incarnation=f"p{number}",
                role=WorkerRole.PREFILL,
                address=f"127.0.0.1:{number + 1}",
            )
            registration = Registration(mesh.plane.redis, record)
            await mesh.plane.stack.enter_async_context(registration)
            await registration.publish_stats(WorkerStats(time.time(), queued_requests=queued))
        await eventually(lambda: len(mesh.router.fleet.workers(WorkerRole.PREFILL)) == 4)
        await eventually(lambda: has_stats(mesh.router, "prefill-3"))
        await mesh.client.generate(input_ids=[5], sampling_params=greedy(1))
        offered = mesh.worker.starts[-1].prefill_candidates
        assert [it.worker_id for it in offered] == ["prefill-1", "prefill-2", "prefill-0"]
        assert [it.queue_length for it in offered] == [0, 2, 4]
        assert (offered[0].incarnation, offered[0].address) == ("p1", "127.0.0.1:2")


def has_stats(router: RouterApp, worker_id: str) -> bool:
    view = router.fleet.worker(worker_id)
    return view is not None and view.stats is not None


async def test_fleet_shows_workers_and_their_figures(redis_url: str) -> None:
    async with setup(redis_url) as mesh:
        await mesh.worker.publish(decoding_requests=3, kv_blocks_total=9, kv_blocks_free=9)

        async def is_shown() -> bool:
            (worker,) = (await mesh.client.fleet()).workers
            return bool(worker.stats.decoding_requests == 3)

        await eventually(is_shown)
        fleet = await mesh.client.fleet()
        (worker,) = fleet.workers
        assert (worker.worker_id, worker.role) == ("decode-0", types_pb2.WORKER_ROLE_DECODE)
        assert worker.address == mesh.worker.record().address
        assert 0 <= worker.stats_age.ToNanoseconds() < 5e9
        assert 0 <= fleet.state_age.ToNanoseconds() < 5e9
        assert fleet.active_requests == 0


async def test_worker_with_another_tokenizer_is_not_used(redis_url: str) -> None:
    async with control_plane(redis_url) as plane:
        worker = FakeDecodeWorker("odd", plane.model)
        record = worker.record
        worker.record = lambda: replace(record(), tokenizer_digest="another")  # type: ignore[method-assign]
        await plane.stack.enter_async_context(worker.running(plane.redis))
        router = await plane.router()
        client = await plane.client(router)
        await eventually(lambda: router.fleet.worker("odd") is not None)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.generate(text="a")
        assert refusal(caught).reason == "NO_WORKER"


async def test_class_that_fails_closed_is_refused_without_admission(redis_url: str) -> None:
    config = Config(qos=Qos(fail_closed=["low"]))
    async with control_plane(redis_url) as plane:
        await plane.decode("decode-0")
        router = await plane.router(config)
        client = await plane.client(router)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.generate(input_ids=[5], priority=types_pb2.PRIORITY_LOW)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert refusal(caught).reason == "NO_ADMISSION"
        assert refusal(caught).retry_after_s is not None
        await client.generate(input_ids=[5], sampling_params=greedy(3))
        assert router.permits.failed_closed == {Priority.LOW: 1}
        assert router.permits.failed_open == {Priority.NORMAL: 1}
        fleet = await client.fleet()
        assert (fleet.admission_services, fleet.requests_without_permit) == (0, 1)


async def test_fleet_shows_how_well_targets_are_met(redis_url: str) -> None:
    async with setup(redis_url) as mesh:
        for _ in range(3):
            await mesh.client.generate(input_ids=[5], sampling_params=greedy(3))
        fleet = await mesh.client.fleet()
        assert fleet.admission_services == 1
        assert {found.requests for found in fleet.slo} == {3}
        assert all(found.attainment == 1.0 for found in fleet.slo)


async def test_second_lone_request_does_not_wait_for_admission(redis_url: str) -> None:
    async with setup(redis_url) as mesh:
        for _ in range(2):
            await mesh.client.generate(input_ids=[5], sampling_params=greedy(2))
        request = router_pb2.ListRequestsRequest()
        answer = await mesh.client.stub.ListRequests(request)
        await eventually(mesh.is_clean)

    verdicts = [summary.admission_verdict for summary in answer.requests]
    assert sorted(verdicts) == ["ahead", "granted"]
