"""Exemplars for Prometheus, which the exporter of the OpenTelemetry SDK leaves out.

A bucket of a histogram then names the trace of a request that fell into it. Prometheus asks for
them itself (OpenMetrics) and keeps them with --enable-feature=exemplar-storage.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import CardinalityLimits, Histogram, MetricsData
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar as Shown
from prometheus_client.samples import Sample

_NO_LABEL = re.compile(r"[^a-zA-Z0-9_]")
_BUCKET = "le"

Labels = frozenset[tuple[str, str]]


class ExemplarReader(PrometheusMetricReader):
    """Offers a process's metrics in `registry`, histograms with their exemplars."""

    def __init__(self, registry: CollectorRegistry, limits: CardinalityLimits) -> None:
        self.exemplars: dict[tuple[str, Labels], Iterable[Exemplar]] = {}
        inner = CollectorRegistry()
        super().__init__(scope_info_enabled=False, registry=inner, cardinality_limits=limits)
        registry.register(_Adding(inner, self.exemplars))

    def _receive_metrics(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> None:
        self.exemplars.clear()
        self.exemplars.update(_exemplars(metrics_data))
        super()._receive_metrics(metrics_data, timeout_millis, **kwargs)


class _Adding(Collector):
    """What another registry collects, with exemplars in the buckets that they fell into."""

    def __init__(
        self,
        inner: CollectorRegistry,
        exemplars: Mapping[tuple[str, Labels], Iterable[Exemplar]],
    ) -> None:
        self._inner = inner
        self._exemplars = exemplars

    def collect(self) -> Iterator[Metric]:
        """Collects; called by the registry for each scrape."""
        for family in self._inner.collect():
            if family.type == "histogram":
                family.samples = list(self._shown(family))
            yield family

    def _shown(self, family: Metric) -> Iterator[Sample]:
        below = float("-inf")
        for sample in family.samples:
            if _BUCKET not in sample.labels:
                below = float("-inf")
                yield sample
                continue
            bound = float(sample.labels[_BUCKET])
            if bound <= below:  # the next series begins
                below = float("-inf")
            for exemplar in self._of(family.name, sample.labels):
                if below < exemplar.value <= bound:
                    sample = sample._replace(exemplar=_shown_as(exemplar))
            below = bound
            yield sample

    def _of(self, name: str, labels: Mapping[str, str]) -> Iterable[Exemplar]:
        key = frozenset(item for item in labels.items() if item[0] != _BUCKET)
        for (metric, series), exemplars in self._exemplars.items():
            # The exporter adds the unit to the name.
            if series == key and (name == metric or name.startswith(f"{metric}_")):
                return exemplars
        return ()


def _exemplars(data: MetricsData) -> Iterator[tuple[tuple[str, Labels], Iterable[Exemplar]]]:
    for resource in data.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                if isinstance(metric.data, Histogram):
                    for point in metric.data.data_points:
                        labels = frozenset(
                            (_NO_LABEL.sub("_", key), str(value))
                            for key, value in (point.attributes or {}).items()
                        )
                        yield (_NO_LABEL.sub("_", metric.name), labels), point.exemplars


def _shown_as(exemplar: Exemplar) -> Shown:
    ids = {"trace_id": f"{exemplar.trace_id or 0:032x}", "span_id": f"{exemplar.span_id or 0:016x}"}
    return Shown(ids, float(exemplar.value), exemplar.time_unix_nano / 1e9)
