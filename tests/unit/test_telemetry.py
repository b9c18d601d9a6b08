"""Spans and metrics through a real OTLP/gRPC receiver."""

from collections.abc import Iterator
from urllib.request import Request, urlopen

import pytest

from baton.errors import StartupError
from baton.ports import free_port
from baton.telemetry import names
from baton.telemetry.exporters import SERIES_PER_METRIC
from baton.telemetry.providers import exemplar_context, start_telemetry, trace_id_of, traceparent_of
from tests.support.otlp import OtlpReceiver

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


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


def test_every_attribute_is_explained() -> None:
    spelled = {value for name, value in vars(names).items() if name.startswith("ATTR_")}
    explained = {name for name in names.ATTRIBUTES if not name.endswith("<part>_s")}
    assert spelled == explained


def test_prometheus_fetches_the_metrics_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port("127.0.0.1")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "prometheus")
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", str(port))
    telemetry = start_telemetry("router", "router-0", "")
    try:
        telemetry.counter(names.KV_BYTES).add(7, {"a.b": "c"})
        with pytest.raises(StartupError, match="OTEL_EXPORTER_PROMETHEUS_PORT"):
            start_telemetry("router", "router-1", "")
        with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            text = answer.read().decode()
    finally:
        telemetry.shutdown()
    assert 'baton_kv_transferred_bytes_total{a_b="c"} 7.0' in text


def test_prometheus_gets_exemplars_in_the_bucket_and_series_that_they_are_of(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port("127.0.0.1")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "prometheus")
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", str(port))
    telemetry = start_telemetry("router", "router-0", receiver.endpoint)
    try:
        histogram = telemetry.histogram(names.TTFT)
        with telemetry.span(names.SPAN_REQUEST) as span:
            trace_id = trace_id_of(span)
            histogram.record(0.3, {"a.b": "c"}, exemplar_context(span))
        histogram.record(0.3, {"a.b": "d"})
        request = Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": OPEN_METRICS})
        with urlopen(request) as answer:
            lines = answer.read().decode().splitlines()
    finally:
        telemetry.shutdown()
    shown = [line for line in lines if trace_id in line]
    assert len(shown) == 1
    assert shown[0].startswith('gen_ai_server_time_to_first_token_seconds_bucket{a_b="c",le="')
    bound = float(shown[0].split('le="')[1].partition('"')[0])
    assert bound == min(edge for edge in names.TTFT.bounds if edge >= 0.3)
    assert "} 0.3 " in shown[0].partition(" # ")[2]


def test_an_unknown_exporter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "graphite")
    with pytest.raises(StartupError, match="graphite"):
        start_telemetry("router", "router-0", "")


def test_series_are_bounded(receiver: OtlpReceiver) -> None:
    telemetry = start_telemetry("router", "router-0", receiver.endpoint)
    counter = telemetry.counter(names.KV_BYTES)
    for at in range(SERIES_PER_METRIC + 50):
        counter.add(1, {names.ATTR_DECODE_WORKER: str(at)})
    telemetry.shutdown()
    (metric,) = [m for m in receiver.metrics if m.name == names.KV_BYTES.name]
    assert len(metric.sum.data_points) <= SERIES_PER_METRIC + 1  # the rest in one
    assert sum(point.as_int for point in metric.sum.data_points) == SERIES_PER_METRIC + 50


def test_sampling_follows_the_standard_environment(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    telemetry = start_telemetry("router", "router-0", receiver.endpoint)
    with telemetry.span(names.SPAN_REQUEST):
        pass
    with telemetry.span(names.SPAN_ROUTE, "00-" + "1" * 32 + "-" + "2" * 16 + "-01"):
        pass
    telemetry.shutdown()
    assert [span.name for span in receiver.spans] == [names.SPAN_ROUTE]


def test_a_measurement_leads_to_its_trace(receiver: OtlpReceiver) -> None:
    telemetry = start_telemetry("router", "router-0", receiver.endpoint)
    with telemetry.span(names.SPAN_REQUEST) as span:
        telemetry.histogram(names.TTFT).record(0.3, {}, exemplar_context(span))
    telemetry.shutdown()
    (metric,) = [m for m in receiver.metrics if m.name == names.TTFT.name]
    (exemplar,) = metric.histogram.data_points[0].exemplars
    assert exemplar.trace_id == receiver.spans[0].trace_id
