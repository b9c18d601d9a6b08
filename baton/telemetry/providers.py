"""Tracer and meter of one process, exporting by OTLP over gRPC when an endpoint is configured."""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import (
    CallbackOptions,
    Counter,
    Histogram,
    Meter,
    NoOpMeter,
    Observation,
)
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    NoOpTracer,
    Span,
    Status,
    StatusCode,
    Tracer,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from baton.errors import BatonError
from baton.telemetry.exporters import metric_readers
from baton.telemetry.names import ATTR_ERROR_TYPE, Metric

Attributes = Mapping[str, AttributeValue]

_PROPAGATOR = TraceContextTextMapPropagator()
_SPAN_DELAY_MS = 200


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What a service records with. Spans are stages of a request, never tokens."""

    tracer: Tracer
    meter: Meter
    _shutdown: Callable[[], None]
    _readings: dict[str, Callable[[], Iterable[tuple[float, Attributes]]]] = field(
        default_factory=dict
    )

    def span(
        self, name: str, traceparent: str = "", attributes: Attributes | None = None
    ) -> AbstractContextManager[Span]:
        """Records a stage under the span that `traceparent` names (W3C), or as a new trace.

        An error that leaves the block marks the span with its reason; a cancellation marks it
        "cancelled".
        """
        return _Stage(self.start_span(name, traceparent, attributes))

    def start_span(
        self, name: str, traceparent: str = "", attributes: Attributes | None = None
    ) -> Span:
        """Starts a span that the caller ends."""
        return self.tracer.start_span(name, context=_context(traceparent), attributes=attributes)

    def record(
        self,
        name: str,
        traceparent: str,
        seconds_ago: float,
        duration_s: float,
        attributes: Attributes,
    ) -> str:
        """Records a stage that is already over; returns its own traceparent for its parts."""
        start_ns = time.time_ns() - round(seconds_ago * 1e9)
        span = self.tracer.start_span(
            name, context=_context(traceparent), start_time=start_ns, attributes=attributes
        )
        span.end(start_ns + round(duration_s * 1e9))
        return traceparent_of(span)

    def histogram(self, metric: Metric) -> Histogram:
        """Makes a histogram with the metric's own buckets."""
        return self.meter.create_histogram(
            metric.name,
            metric.unit,
            metric.meaning,
            explicit_bucket_boundaries_advisory=list(metric.bounds),
        )

    def counter(self, metric: Metric) -> Counter:
        """Makes a counter."""
        return self.meter.create_counter(metric.name, metric.unit, metric.meaning)

    def gauge(self, metric: Metric, read: Callable[[], Iterable[tuple[float, Attributes]]]) -> None:
        """Observes what `read` returns (value and attributes) at each export.

        A second gauge of the name takes the first one's place.
        """
        self._readings[metric.name] = read

        def observe(_: CallbackOptions) -> Iterable[Observation]:
            readings = self._readings[metric.name]()
            return [Observation(value, dict(attributes)) for value, attributes in readings]

        self.meter.create_observable_gauge(metric.name, [observe], metric.unit, metric.meaning)

    def shutdown(self) -> None:
        """Exports what is left, in bounded time."""
        self._shutdown()


class _Stage:
    """Ends a span with its block; several for each request, so no generator."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def __enter__(self) -> Span:
        return self._span

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            _mark(self._span, error)
        self._span.end()


def start_telemetry(service: str, instance: str, otlp_endpoint: str) -> Telemetry:
    """Makes the providers of this process; what is exported nowhere is not even recorded.

    Sampling follows OTEL_TRACES_SAMPLER, metrics OTEL_METRICS_EXPORTER. Raises StartupError.
    """
    resource = Resource.create({"service.name": service, "service.instance.id": instance})
    tracer, stop_traces = _start_traces(resource, otlp_endpoint)
    meter, stop_metrics = _start_metrics(resource, otlp_endpoint)

    def shutdown() -> None:
        stop_traces()
        stop_metrics()

    return Telemetry(tracer, meter, shutdown)


def _start_traces(resource: Resource, otlp_endpoint: str) -> tuple[Tracer, Callable[[], None]]:
    if not otlp_endpoint:
        # A recorded span that nobody exports costs a router tens of microseconds each.
        return NoOpTracer(), lambda: None
    tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
    tracers.add_span_processor(
        BatchSpanProcessor(
            OTLPSpanExporter(endpoint=otlp_endpoint, insecure=True, timeout=2),
            schedule_delay_millis=_SPAN_DELAY_MS,
        )
    )
    return tracers.get_tracer("baton"), tracers.shutdown


def _start_metrics(resource: Resource, otlp_endpoint: str) -> tuple[Meter, Callable[[], None]]:
    found = list(metric_readers(otlp_endpoint))
    if not found:
        return NoOpMeter("baton"), lambda: None
    meters = MeterProvider([reader for reader, _ in found], resource, shutdown_on_exit=False)

    def stop() -> None:
        meters.shutdown()
        for _, close in found:
            close()

    return meters.get_meter("baton"), stop


def traceparent_of(span: Span) -> str:
    """Returns the W3C traceparent of a span; empty when it is not recorded."""
    context = span.get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def exemplar_context(span: Span) -> Context | None:
    """Returns what links a measurement to a sampled span; None when there is nothing to link."""
    return set_span_in_context(span) if span.get_span_context().trace_flags.sampled else None


def trace_id_of(span: Span) -> str:
    """Returns the id of a span's trace in hex; empty when it is not recorded."""
    context = span.get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else ""


def _context(traceparent: str) -> Context | None:
    return _PROPAGATOR.extract({"traceparent": traceparent}) if traceparent else None


def _mark(span: Span, error: BaseException) -> None:
    reason = error.reason if isinstance(error, BatonError) else type(error).__name__
    span.set_attribute(ATTR_ERROR_TYPE, reason)
    span.set_status(Status(StatusCode.ERROR, reason))
