"""Writes docs/telemetry.md from the names in baton/telemetry/names.py, so that it is never wrong.

python tools/telemetry_doc.py           writes it
python tools/telemetry_doc.py --check   exits with 1 when it is not fresh
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from baton.telemetry import names
from baton.telemetry.exporters import DEFAULT_PROMETHEUS_PORT, SERIES_PER_METRIC

TARGET = Path(__file__).parents[1] / "docs" / "telemetry.md"
_UNITS = {"s": "_seconds", "By": "_bytes"}
_HEAD = f"""# Telemetry

Every span, attribute and metric that Baton emits. The names are stable: one that changes is
announced in the changelog of the release and kept beside the new one for one release. This page is
made from `baton/telemetry/names.py` by `make docs`.

## Switching it on

- Traces and metrics by OTLP/gRPC: `mesh.otlp_endpoint`, such as `http://127.0.0.1:4317`.
- Sampling: `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`, as OpenTelemetry defines them;
  `parentbased_traceidratio` with `0.01` keeps one request in a hundred, whole.
- Metrics for Prometheus, without a collector: `OTEL_METRICS_EXPORTER=prometheus` (or
  `otlp,prometheus`) in each process, and where it is found by `OTEL_EXPORTER_PROMETHEUS_HOST` and
  `OTEL_EXPORTER_PROMETHEUS_PORT` (localhost:{DEFAULT_PROMETHEUS_PORT}).
- All of that on a laptop: `baton up --metrics` gives each process a port and prints the
  `prometheus` command that scrapes them.
- More resource attributes: `OTEL_RESOURCE_ATTRIBUTES`.

Without an endpoint and without Prometheus nothing is recorded at all.

**Trace context.** Clients may send `traceparent`, as gRPC metadata or as an HTTP header; the
request's spans then belong to their trace. Which trace a request became is answered, also when it
failed, in `traceresponse` (W3C Trace Context Level 2): a header of the gateway's answer, initial
metadata of `RouterService.Generate`; `GenerateComplete.trace_id` has it too, and `baton generate`
prints it. Inside the mesh the context travels
in the frames of each request, and to an SGLang engine with the request, so that its own spans have
the same trace.

**SGLang.** Workers on SGLang record the same spans with the same parts as all others, made from the
stage times that the engine reports (`tests/sglang/test_aggregated.py`). The engine's own spans join
the trace when it is told to trace, by its own arguments:

```yaml
engine:
  kind: sglang
  sglang: {{enable_trace: true, otlp_traces_endpoint: "127.0.0.1:4317"}}
```

SGLang then imports `opentelemetry-exporter-otlp-proto-http` too, which has to be installed beside
it. Names and attributes of these spans are SGLang's and change with its releases. Seen in a trace
of 0.5.23: `Req NAME`, `request_process`, `prefill_waiting`, `prefill_forward`, `decode_waiting`,
`decode_forward` and one `decode_loop` for each step. By its source pairs have `prefill_bootstrap`,
`prefill_transfer_kv_cache`, `decode_bootstrap` and `decode_transferred` besides.

**Exemplars.** Latency histograms carry the trace of a sampled request, by OTLP and where Prometheus
scrapes the processes themselves (OpenMetrics, which it asks for by itself). It keeps them with
`--enable-feature=exemplar-storage`; Grafana links them to Jaeger in the compose stack.

**Cardinality.** No metric has a request or a session as an attribute, and only the SLO gauges have
tenants, those that `qos.tenants` names. Each metric keeps at most {SERIES_PER_METRIC} series per
process; what comes beyond that is counted in one series with `otel.metric.overflow`. Workers that
are given names keep their series through restarts.

## Spans

`baton.request` is the parent of all stages; the stages are siblings, never one per token. The eight
`baton.ttft.*_s` attributes of `baton.request` add up to `baton.ttft_s`.

"""


def render() -> str:
    """Returns the page."""
    return _HEAD + "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "| span | what it covers |"
    yield "|---|---|"
    for name, meaning in names.SPANS.items():
        yield f"| `{name}` | {meaning} |"
    yield "\n## Attributes\n"
    yield "| attribute | meaning |"
    yield "|---|---|"
    for name, meaning in names.ATTRIBUTES.items():
        yield f"| `{name}` | {meaning.replace('|', chr(92) + '|')} |"
    yield "\n## Metrics\n"
    yield "| metric | kind | in Prometheus | unit | meaning |"
    yield "|---|---|---|---|---|"
    for metric in names.METRICS:
        yield (
            f"| `{metric.name}` | {metric.kind} | `{prometheus_name(metric)}` | "
            f"{metric.unit.strip('{}')} | {metric.meaning.replace('|', chr(92) + '|')} |"
        )


def prometheus_name(metric: names.Metric) -> str:
    """Returns what Prometheus calls a metric."""
    name = metric.name.replace(".", "_") + _UNITS.get(metric.unit, "")
    return f"{name}_total" if metric.kind == "counter" else name


def main() -> None:
    """Writes the page, or checks that it is fresh."""
    text = render()
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(text, encoding="utf-8")
    elif not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text:
        sys.exit(f"{TARGET.name} is not what the code says: run `make docs`")


if __name__ == "__main__":
    main()
