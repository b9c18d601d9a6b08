"""What one request leaves in traces and metrics."""

import asyncio
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from baton.errors import UnavailableError
from baton.telemetry import names
from baton.telemetry.providers import Telemetry, traceparent_of
from baton.v1 import router_pb2, router_pb2_grpc, types_pb2
from tests.support.control_plane import Call, ControlPlane, FakeDecodeWorker, control_plane
from tests.support.mesh import greedy
from tests.support.waiting import eventually

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


class Recorded:
    """Telemetry that stays in memory."""

    def __init__(self) -> None:
        self.spans = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()
        tracers = TracerProvider(shutdown_on_exit=False)
        tracers.add_span_processor(SimpleSpanProcessor(self.spans))
        meters = MeterProvider([self.reader], shutdown_on_exit=False)
        self.telemetry = Telemetry(tracers.get_tracer("t"), meters.get_meter("t"), tracers.shutdown)

    def points(self, metric: names.Metric) -> list[Any]:
        data = self.reader.get_metrics_data()
        if data is None:
            return []
        return [
            point
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for found in scope.metrics
            if found.name == metric.name
            for point in found.data.data_points
        ]


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


async def with_telemetry(plane: ControlPlane, recorded: Recorded) -> Any:
    plane.telemetry.shutdown()
    plane.telemetry = recorded.telemetry
    await plane.admission()
    return await plane.router()


async def test_spans_of_a_request_are_siblings_under_one_parent(
    redis_url: str, recorded: Recorded
) -> None:
    async with control_plane(redis_url) as plane:
        await plane.decode("decode-0")
        router = await with_telemetry(plane, recorded)
        client = await plane.client(router)
        answer = await client.generate(
            input_ids=[5] * 9,
            sampling_params=greedy(4),
            metadata=[("traceparent", f"00-{TRACE_ID}-{PARENT}-01")],
        )
        await eventually(lambda: len(recorded.spans.get_finished_spans()) == 3)
        spans = {span.name: span for span in recorded.spans.get_finished_spans()}
        request = spans[names.SPAN_REQUEST]
        assert request.parent is not None
        assert f"{request.parent.span_id:016x}" == PARENT
        assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {TRACE_ID}
        for name in (names.SPAN_ROUTE, names.SPAN_ADMIT):
            parent = spans[name].parent
            assert parent is not None
            assert parent.span_id == request.context.span_id
        attributes = request.attributes or {}
        parts = [it for key, it in attributes.items() if key.startswith(names.TTFT_PART_PREFIX)]
        assert len(parts) == 8
        ttft_s = attributes[names.ATTR_TTFT_S]
        assert sum(parts) == pytest.approx(ttft_s, abs=1e-6)  # type: ignore[arg-type]
        assert attributes[names.ATTR_OUTPUT_TOKENS] == len(answer.output_ids)
        assert attributes[names.ATTR_ADMISSION_VERDICT] == "granted"
        assert (spans[names.SPAN_ADMIT].attributes or {})[names.ATTR_ADMISSION_VERDICT] == "granted"


async def test_clients_are_told_the_trace_of_an_answer(redis_url: str, recorded: Recorded) -> None:
    async with control_plane(redis_url) as plane:
        await plane.decode("decode-0")
        client = await plane.client(await with_telemetry(plane, recorded))
        message = router_pb2.GenerateRequest(input_ids=[5], sampling_params=greedy(1))
        call = client.stub.Generate(message, timeout=10)
        told = dict(await call.initial_metadata())["traceresponse"]
        parts = [part async for part in call]
        await eventually(lambda: len(recorded.spans.get_finished_spans()) == 3)
        spans = {span.name: span for span in recorded.spans.get_finished_spans()}
        assert told == traceparent_of(spans[names.SPAN_REQUEST])
        assert parts[-1].complete.trace_id == told.split("-")[1]


def ask_nothing(address: str) -> tuple[str, grpc.StatusCode]:
    """Returns the trace that a request without a prompt is told, and its status.

    Not by grpc.aio, whose client takes the initial metadata for empty when the status is there
    before it has booked its own request as sent.
    """
    with grpc.insecure_channel(address) as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)
        call: Any = stub.Generate(router_pb2.GenerateRequest(), timeout=10)
        return dict(call.initial_metadata())["traceresponse"], call.code()


async def test_clients_are_told_the_trace_of_a_refused_request(
    redis_url: str, recorded: Recorded
) -> None:
    async with control_plane(redis_url) as plane:
        router = await with_telemetry(plane, recorded)
        told, code = await asyncio.to_thread(ask_nothing, router.address)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        await eventually(lambda: len(recorded.spans.get_finished_spans()) == 1)
        (span,) = recorded.spans.get_finished_spans()
        assert told == traceparent_of(span)


async def test_workers_get_the_requests_trace(redis_url: str, recorded: Recorded) -> None:
    async with control_plane(redis_url) as plane:
        worker = await plane.decode("decode-0")
        router = await with_telemetry(plane, recorded)
        client = await plane.client(router)
        await client.generate(input_ids=[5], sampling_params=greedy(1))
        await eventually(lambda: len(recorded.spans.get_finished_spans()) == 3)
        spans = {span.name: span for span in recorded.spans.get_finished_spans()}
        span_id = spans[names.SPAN_REQUEST].context.span_id
        assert f"{span_id:016x}" in worker.calls[0].traceparent


async def test_metrics_tell_outcome_latency_and_migrations(
    redis_url: str, recorded: Recorded
) -> None:
    async def die(worker: FakeDecodeWorker, call: Call) -> None:
        await worker.send_prefilled(call)
        raise UnavailableError("gone", reason="ENGINE_DOWN")

    async def remote(worker: FakeDecodeWorker, call: Call) -> None:
        receipt = types_pb2.KvReceipt(bytes=1000)
        mode = types_pb2.PREFILL_MODE_REMOTE
        await worker.send_prefilled(call, mode=mode, cached_tokens=3, receipt=receipt)
        await worker.send_token(call)
        await worker.send_token(call)
        await worker.send_finished(call, types_pb2.FINISH_REASON_LENGTH)

    async with control_plane(redis_url) as plane:
        await plane.decode("decode-bad", die)
        good = await plane.decode("decode-good", remote)
        await good.publish(decoding_requests=40)
        router = await with_telemetry(plane, recorded)
        client = await plane.client(router)
        await client.generate(input_ids=[5] * 9, sampling_params=greedy(2))
        await eventually(lambda: bool(recorded.points(names.REQUESTS)))
        (request,) = recorded.points(names.REQUESTS)
        assert request.attributes[names.ATTR_OPERATION] == "text_completion"
        assert request.attributes[names.ATTR_REQUEST_MODEL] == "baton-tiny"
        assert names.ATTR_ERROR_TYPE not in request.attributes
        for metric in (names.TTFT, names.TPOT, names.DURATION):
            (point,) = recorded.points(metric)
            assert point.count == 1
        assert sum(it.value for it in recorded.points(names.MIGRATIONS)) == 1
        assert [it.value for it in recorded.points(names.CACHED_TOKENS)] == [3]
        assert [it.value for it in recorded.points(names.KV_BYTES)] == [1000]
        (prefill,) = recorded.points(names.PREFILLS)
        assert prefill.attributes[names.ATTR_PREFILL_MODE] == "remote"
        assert recorded.points(names.STATE_AGE)[0].value < 5


async def test_prediction_and_its_error_are_on_the_spans_and_a_metric(
    redis_url: str, recorded: Recorded
) -> None:
    async with control_plane(redis_url) as plane:
        await plane.decode("decode-0")
        client = await plane.client(await with_telemetry(plane, recorded))
        await client.generate(input_ids=[5] * 9, sampling_params=greedy(2))
        await eventually(lambda: len(recorded.spans.get_finished_spans()) == 3)
        spans = {span.name: span.attributes or {} for span in recorded.spans.get_finished_spans()}
        route, request = spans[names.SPAN_ROUTE], spans[names.SPAN_REQUEST]
        parts = ("wait", "prefill", "transfer", "admit")
        predicted_s = sum(route[f"{names.PREDICTED_PART_PREFIX}{it}_s"] for it in parts)  # type: ignore[misc]
        assert route[names.ATTR_PREDICTED_TTFT_S] == pytest.approx(predicted_s)
        assert route[names.ATTR_PREDICTED_TPOT_S] > 0  # type: ignore[operator]
        assert request[names.ATTR_PREDICTED_TTFT_S] == pytest.approx(predicted_s)
        (point,) = recorded.points(names.PREDICTION_ERROR)
        assert point.count == 1
        assert point.sum == pytest.approx(request[names.ATTR_PREDICTION_ERROR])
        assert point.attributes[names.ATTR_POLICY] == "latency"


async def test_refused_request_is_counted_with_its_reason(
    redis_url: str, recorded: Recorded
) -> None:
    async with control_plane(redis_url) as plane:
        router = await with_telemetry(plane, recorded)
        client = await plane.client(router)
        with pytest.raises(Exception, match="empty"):
            await client.generate()
        await eventually(lambda: bool(recorded.points(names.REQUESTS)))
        (request,) = recorded.points(names.REQUESTS)
        assert request.attributes[names.ATTR_ERROR_TYPE] == "INVALID_REQUEST"
        assert not recorded.points(names.TTFT)
