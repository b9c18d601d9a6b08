"""What a trace of one request shows of its workers."""

from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from baton.telemetry import names
from baton.telemetry.providers import Telemetry
from tests.support.fake_engine import FakeEngine
from tests.support.waiting import eventually
from tests.support.worker_fleet import WorkerFleet, read

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
REQUEST_SPAN = 0xB7AD6B7169203331
LONG = tuple(range(1, 400))
SHORT = LONG[:20]


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Collects the spans of all workers started afterwards."""
    exporter = InMemorySpanExporter()

    def start(service: str, instance: str, endpoint: str) -> Telemetry:
        tracers = TracerProvider(shutdown_on_exit=False)
        tracers.add_span_processor(SimpleSpanProcessor(exporter))
        meters = MeterProvider(shutdown_on_exit=False)
        return Telemetry(tracers.get_tracer("baton"), meters.get_meter("baton"), tracers.shutdown)

    monkeypatch.setattr("tests.support.worker_fleet.start_telemetry", start)
    return exporter


def by_name(exporter: InMemorySpanExporter) -> dict[str, Any]:
    found = {span.name: span for span in exporter.get_finished_spans()}
    assert len(found) == len(exporter.get_finished_spans()), "one span of each kind"
    return found


async def test_remote_prefill_shows_all_stages_under_the_request(
    fleet: WorkerFleet, spans: InMemorySpanExporter
) -> None:
    # In this order: a worker that starts reads the fleet first, so p0 knows what d0 is called.
    decode = await fleet.decode("d0", FakeEngine(blocks=256))
    prefill = await fleet.prefill("p0", FakeEngine(blocks=256))
    candidates = [prefill.candidate(queue_length=2)]
    await read(fleet.ask(decode, LONG, candidates, traceparent=TRACEPARENT))
    await eventually(lambda: len(spans.get_finished_spans()) == 5)
    found = by_name(spans)
    for name in (names.SPAN_PREFILL, names.SPAN_KV_TRANSFER, names.SPAN_DECODE):
        assert found[name].parent.span_id == REQUEST_SPAN, name
    own = found[names.SPAN_PREFILL]
    for name in (names.SPAN_PREFILL_QUEUE, names.SPAN_PREFILL_COMPUTE):
        assert found[name].parent.span_id == own.context.span_id
        # Parts are recorded afterwards from durations; converting clocks rounds.
        assert own.start_time <= found[name].start_time + 1_000_000
    transfer = found[names.SPAN_KV_TRANSFER].attributes
    assert transfer[names.ATTR_KV_BLOCKS] == 100
    assert transfer[names.ATTR_KV_BYTES] == 800
    assert transfer[names.ATTR_DECODE_WORKER] == "d0"
    decoded = found[names.SPAN_DECODE].attributes
    assert decoded[names.ATTR_PREFILL_MODE] == "remote"
    assert decoded[names.ATTR_OUTPUT_TOKENS] == 8
    assert decoded[f"{names.ATTR_POLICY}.uncached_tokens"] == 399
    assert decoded[f"{names.ATTR_POLICY}.threshold_tokens"] == 256
    assert decoded[f"{names.ATTR_POLICY}.shortest_queue"] == 2


async def test_local_prefill_has_the_same_stages(
    fleet: WorkerFleet, spans: InMemorySpanExporter
) -> None:
    decode = await fleet.decode("d0", FakeEngine())
    await read(fleet.ask(decode, SHORT, traceparent=TRACEPARENT))
    await eventually(lambda: len(spans.get_finished_spans()) == 4)
    found = by_name(spans)
    assert found[names.SPAN_PREFILL].parent.span_id == REQUEST_SPAN
    own = found[names.SPAN_PREFILL]
    assert own.end_time - own.start_time == pytest.approx(3_000_000, rel=0.01)
    assert found[names.SPAN_PREFILL_COMPUTE].parent.span_id == own.context.span_id
    assert found[names.SPAN_DECODE].attributes[names.ATTR_PREFILL_REASON] == "SHORT_PREFILL"


async def test_failed_attempts_are_on_the_decode_span(
    fleet: WorkerFleet, spans: InMemorySpanExporter
) -> None:
    prefill = await fleet.prefill("p0", FakeEngine(blocks=256))
    decode = await fleet.decode("d0", FakeEngine(blocks=256))
    await eventually(lambda: decode.service.connected_prefill_workers() == ["p0"])
    fleet.fabric.faults_towards(decode.incarnation).doubled_notices = 1
    await read(fleet.ask(decode, LONG, [prefill.candidate()], traceparent=TRACEPARENT))
    await eventually(
        lambda: any(span.name == names.SPAN_DECODE for span in spans.get_finished_spans())
    )
    (decoded,) = (s for s in spans.get_finished_spans() if s.name == names.SPAN_DECODE)
    assert decoded.attributes[names.ATTR_FAILED_ATTEMPTS] == ("p0: KV_MISMATCH",)
    assert decoded.attributes[names.ATTR_PREFILL_MODE] == "local"
