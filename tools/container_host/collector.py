"""Stands in for the OpenTelemetry collector where its image cannot be had.

Listens on 4317 for OTLP over gRPC and prints a line for each span and for each new metric, so that
a test can see in the container's log what the services export.
"""

import signal
import threading
from collections.abc import Iterable
from concurrent import futures
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_grpc

ADDRESS = "0.0.0.0:4317"


def service_name(attributes: Iterable[Any]) -> str:
    """Returns the service.name among a resource's attributes."""
    names = (item.value.string_value for item in attributes if item.key == "service.name")
    return next(names, "unknown")


class Traces(trace_grpc.TraceServiceServicer):
    """Prints every span."""

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - protocol's
        for resource in request.resource_spans:
            service = service_name(resource.resource.attributes)
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                print(f"span {service} {span.name} trace {span.trace_id.hex()}", flush=True)
        return trace_pb2.ExportTraceServiceResponse()


class Metrics(metrics_grpc.MetricsServiceServicer):
    """Prints every metric's name once per service."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, str]] = set()

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - protocol's
        for resource in request.resource_metrics:
            service = service_name(resource.resource.attributes)
            for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
                if (service, metric.name) not in self._seen:
                    self._seen.add((service, metric.name))
                    print(f"metric {service} {metric.name}", flush=True)
        return metrics_pb2.ExportMetricsServiceResponse()


def main() -> None:
    """Serves until SIGTERM."""
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_grpc.add_TraceServiceServicer_to_server(Traces(), server)  # type: ignore[no-untyped-call]
    metrics_grpc.add_MetricsServiceServicer_to_server(Metrics(), server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(ADDRESS)
    server.start()
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    stopped.wait()
    server.stop(1).wait()


if __name__ == "__main__":
    main()
