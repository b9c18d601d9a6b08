"""Spans that both worker roles record."""

from baton.telemetry.names import SPAN_PREFILL_COMPUTE, SPAN_PREFILL_QUEUE
from baton.telemetry.providers import Telemetry


def record_prefill_parts(
    telemetry: Telemetry, traceparent: str, started_s_ago: float, queue_s: float, compute_s: float
) -> None:
    """Records the two parts of a prefill, one after the other, under its span `traceparent`."""
    telemetry.record(SPAN_PREFILL_QUEUE, traceparent, started_s_ago, queue_s, {})
    telemetry.record(SPAN_PREFILL_COMPUTE, traceparent, started_s_ago - queue_s, compute_s, {})
