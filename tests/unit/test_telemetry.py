"""Spans and metrics through a real OTLP/gRPC receiver."""

from collections.abc import Iterator

import pytest

from baton.telemetry import names
from baton.telemetry.providers import start_telemetry, traceparent_of
from tests.support.otlp import OtlpReceiver


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as running:
        yield running


def test_stages_are_siblings_in_one_trace(receiver: OtlpReceiver) -> None:
    telemetry = start_telemetry("router", "router-0", receiver.endpoint)
    with telemetry.span(names.SPAN_REQUEST) as request:
        parent = traceparent_of(request)
        with telemetry.span(names.SPAN_ROUTE, parent):
            pass
        telemetry.record(names.SPAN_PREFILL, parent, 0.5, 0.2, {names.ATTR_KV_BYTES: 7})
    telemetry.shutdown()

    spans = {span.name: span for span in receiver.spans}
    assert set(spans) == {names.SPAN_REQUEST, names.SPAN_ROUTE, names.SPAN_PREFILL}
    assert len({span.trace_id for span in spans.values()}) == 1
    root = spans[names.SPAN_REQUEST].span_id
    assert spans[names.SPAN_ROUTE].parent_span_id == root
    assert spans[names.SPAN_PREFILL].parent_span_id == root
    prefill = spans[names.SPAN_PREFILL]
    assert prefill.end_time_unix_nano - prefill.start_time_unix_nano == 200_000_000


def test_error_marks_its_span(receiver: OtlpReceiver) -> None:
    from baton.errors import OverloadedError

    telemetry = start_telemetry("router", "router-0", receiver.endpoint)
    with (
        pytest.raises(OverloadedError),
        telemetry.span(names.SPAN_ADMIT),
    ):
        raise OverloadedError("full", reason="QUEUE_FULL")
    telemetry.shutdown()
    (span,) = receiver.spans
    attributes = {item.key: item.value.string_value for item in span.attributes}
    assert attributes[names.ATTR_ERROR_TYPE] == "QUEUE_FULL"


def test_genai_histogram_has_its_own_buckets(receiver: OtlpReceiver) -> None:
    telemetry = start_telemetry("router", "router-0", receiver.endpoint)
    telemetry.histogram(names.TTFT).record(0.3)
    telemetry.shutdown()
    (metric,) = [m for m in receiver.metrics if m.name == names.TTFT.name]
    (point,) = metric.histogram.data_points
    assert tuple(point.explicit_bounds) == names.TTFT.bounds
    assert metric.unit == "s"


def test_names_are_unique_and_explained() -> None:
    metrics = [metric.name for metric in names.METRICS]
    assert len(metrics) == len(set(metrics))
    assert all(metric.meaning.endswith((".", ")")) for metric in names.METRICS)
    assert all(meaning.endswith(".") for meaning in names.SPANS.values())
