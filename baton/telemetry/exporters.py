"""Where a process's metrics go: pushed by OTLP, or fetched by Prometheus from its own port.

OpenTelemetry's own environment variables decide. OTEL_METRICS_EXPORTER is a list of `otlp` (the
default; it takes an endpoint), `prometheus` and `none`; OTEL_EXPORTER_PROMETHEUS_HOST and
OTEL_EXPORTER_PROMETHEUS_PORT say where Prometheus finds the process (localhost:9464).
"""

import os
from collections.abc import Callable, Iterator

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import Counter, Histogram, ObservableGauge
from opentelemetry.sdk.metrics.export import (
    CardinalityLimits,
    MetricReader,
    PeriodicExportingMetricReader,
)

from baton.errors import StartupError

METRICS_EXPORTER = "OTEL_METRICS_EXPORTER"
PROMETHEUS_HOST = "OTEL_EXPORTER_PROMETHEUS_HOST"
PROMETHEUS_PORT = "OTEL_EXPORTER_PROMETHEUS_PORT"
DEFAULT_PROMETHEUS_PORT = 9464
KNOWN = ("otlp", "prometheus", "none", "")

SERIES_PER_METRIC = 1000
"""Beyond so many, what comes new is counted in one series that says so (otel.metric.overflow)."""

_EXPORT_EVERY_MS = 5_000
_LIMITS: CardinalityLimits = {
    Counter: SERIES_PER_METRIC,
    Histogram: SERIES_PER_METRIC,
    ObservableGauge: SERIES_PER_METRIC,
}

Closing = Callable[[], None]


def wished_exporters() -> frozenset[str]:
    """Returns what OTEL_METRICS_EXPORTER asks for. Raises StartupError for what is unknown."""
    text = os.environ.get(METRICS_EXPORTER, "otlp")
    wished = frozenset(name.strip() for name in text.split(","))
    unknown = wished.difference(KNOWN)
    if unknown:
        raise StartupError(
            f"{METRICS_EXPORTER} names {', '.join(sorted(unknown))}; "
            "otlp, prometheus and none are known"
        )
    return wished


def metric_readers(otlp_endpoint: str) -> Iterator[tuple[MetricReader, Closing]]:
    """Yields a reader for each exporter asked for, and how what it opened is closed again.

    Raises StartupError when Prometheus's port is taken.
    """
    wished = wished_exporters()
    if "otlp" in wished and otlp_endpoint:
        exporter = OTLPMetricExporter(endpoint=otlp_endpoint, insecure=True, timeout=2)
        yield (
            PeriodicExportingMetricReader(exporter, _EXPORT_EVERY_MS, cardinality_limits=_LIMITS),
            lambda: None,
        )
    if "prometheus" in wished:
        yield _prometheus()


def _prometheus() -> tuple[MetricReader, Closing]:
    # Only processes that are scraped need it.
    from prometheus_client import CollectorRegistry, start_http_server

    from baton.telemetry.exemplars import ExemplarReader

    registry = CollectorRegistry()
    reader = ExemplarReader(registry, _LIMITS)
    host = os.environ.get(PROMETHEUS_HOST, "localhost")
    port = os.environ.get(PROMETHEUS_PORT, str(DEFAULT_PROMETHEUS_PORT))
    try:
        server, thread = start_http_server(int(port), host, registry)
    except (OSError, ValueError) as error:
        raise StartupError(
            f"metrics cannot be offered at {host}:{port} ({error}); set {PROMETHEUS_PORT}"
        ) from error

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return reader, close
