"""A real OTLP/gRPC receiver that keeps what it gets."""

import threading
from concurrent import futures
from types import TracebackType
from typing import Any, Self

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_grpc


class _Traces(trace_grpc.TraceServiceServicer):
    def __init__(self, kept: "OtlpReceiver") -> None:
        self._kept = kept

    def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            service = next(
                item.value.string_value
                for item in resource.resource.attributes
                if item.key == "service.name"
            )
            for scope in resource.scope_spans:
                self._kept.add_spans(service, list(scope.spans))
        return trace_pb2.ExportTraceServiceResponse()


class _Metrics(metrics_grpc.MetricsServiceServicer):
    def __init__(self, kept: "OtlpReceiver") -> None:
        self._kept = kept

    def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_metrics:
            instance = next(
                item.value.string_value
                for item in resource.resource.attributes
                if item.key == "service.instance.id"
            )
            for scope in resource.scope_metrics:
                self._kept.metrics.extend(scope.metrics)
                self._kept.metrics_by_service.extend((instance, it) for it in scope.metrics)
        return metrics_pb2.ExportMetricsServiceResponse()


class OtlpReceiver:
    """Listens on a private port; `spans`, `services` (by span id), `metrics` grow."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: dict[bytes, str] = {}
        self.metrics: list[Any] = []
        self.metrics_by_service: list[tuple[str, Any]] = []
        self._lock = threading.Lock()
        self._server = grpc.server(futures.ThreadPoolExecutor(2))

    def __enter__(self) -> Self:
        trace_grpc.add_TraceServiceServicer_to_server(_Traces(self), self._server)
        metrics_grpc.add_MetricsServiceServicer_to_server(_Metrics(self), self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        self.endpoint = f"http://127.0.0.1:{port}"
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._server.stop(0).wait()

    def add_spans(self, service: str, spans: list[Any]) -> None:
        with self._lock:
            self.spans.extend(spans)
            self.services.update({span.span_id: service for span in spans})

    def trace(self, trace_id: bytes) -> list[Any]:
        """Returns the spans of one trace received so far."""
        with self._lock:
            return [span for span in self.spans if span.trace_id == trace_id]
