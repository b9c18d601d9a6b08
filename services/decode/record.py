"""What traces learn about each generation; routers count, since they see every outcome."""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.trace import Span
from opentelemetry.util.types import AttributeValue

from baton.engine.base import TokenEvent
from baton.telemetry.names import (
    ATTR_CACHED_TOKENS,
    ATTR_DECODE_WORKER,
    ATTR_FAILED_ATTEMPTS,
    ATTR_FINISH_REASONS,
    ATTR_INPUT_TOKENS,
    ATTR_KV_BYTES,
    ATTR_MATCHED_TOKENS,
    ATTR_MAX_TOKENS,
    ATTR_OUTPUT_TOKENS,
    ATTR_POLICY,
    ATTR_PREFILL_MODE,
    ATTR_PREFILL_REASON,
    ATTR_PREFILL_WORKER,
    ATTR_PRIORITY,
    ATTR_REQUEST_ID,
    SPAN_DECODE,
    SPAN_PREFILL,
)
from baton.telemetry.providers import Telemetry
from baton.worker.spans import record_prefill_parts
from services.decode.job import Job, PromptReady
from services.decode.policy import SplitDecision

_DECISION_PREFIX = f"{ATTR_POLICY}."


class JobRecord:
    """One generation's span."""

    def __init__(self, job: Job, span: Span, recorder: "JobRecorder") -> None:
        self._job = job
        self._span = span
        self._recorder = recorder
        self._output_tokens = 0

    def prompt_ready(self, ready: PromptReady) -> None:
        """Records where and how the prompt was computed."""
        if self._span.is_recording():
            self._span.set_attributes(_describe(ready))
        if not ready.is_remote:
            self._recorder.record_local_prefill(self._job, ready)

    def tokens(self, event: TokenEvent) -> None:
        """Counts tokens; the span gets their number once, at the end."""
        self._output_tokens += len(event.token_ids)
        if event.finish_reason is not None:
            self._span.set_attribute(ATTR_FINISH_REASONS, [event.finish_reason.name.lower()])

    def end(self) -> None:
        """Records what is known only now."""
        self._span.set_attribute(ATTR_OUTPUT_TOKENS, self._output_tokens)


class JobRecorder:
    """Records all generations of one decode worker."""

    def __init__(self, worker_id: str, telemetry: Telemetry) -> None:
        self._worker_id = worker_id
        self._telemetry = telemetry

    @contextmanager
    def recording(self, job: Job) -> Iterator[JobRecord]:
        """Records the span of a generation; an error that leaves the block marks it."""
        request = job.request
        attributes: dict[str, AttributeValue] = {
            ATTR_REQUEST_ID: request.request_id,
            ATTR_DECODE_WORKER: self._worker_id,
            ATTR_PRIORITY: request.priority.name.lower(),
            ATTR_INPUT_TOKENS: len(request.input_ids),
            ATTR_MAX_TOKENS: request.sampling.max_tokens,
        }
        with self._telemetry.span(SPAN_DECODE, job.traceparent, attributes) as span:
            record = JobRecord(job, span, self)
            try:
                yield record
            finally:
                record.end()

    def record_local_prefill(self, job: Job, ready: PromptReady) -> None:
        """Records the prefill that just ended here, with its parts."""
        seconds = ready.prefill_queue_s + ready.prefill_compute_s
        attributes: dict[str, AttributeValue] = {
            ATTR_REQUEST_ID: job.request.request_id,
            ATTR_PREFILL_WORKER: self._worker_id,
            ATTR_PREFILL_MODE: _mode(ready),
            ATTR_CACHED_TOKENS: ready.cached_tokens,
        }
        own = self._telemetry.record(SPAN_PREFILL, job.traceparent, seconds, seconds, attributes)
        record_prefill_parts(
            self._telemetry, own, seconds, ready.prefill_queue_s, ready.prefill_compute_s
        )


def _describe(ready: PromptReady) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        ATTR_PREFILL_MODE: _mode(ready),
        ATTR_PREFILL_REASON: ready.reason,
        ATTR_PREFILL_WORKER: ready.prefill_worker_id,
        ATTR_FAILED_ATTEMPTS: ready.failed_attempts,
        ATTR_MATCHED_TOKENS: ready.matched_tokens,
        ATTR_CACHED_TOKENS: ready.cached_tokens,
        ATTR_KV_BYTES: ready.receipt.bytes if ready.receipt is not None else 0,
    }
    return attributes | _numbers(ready.decision)


def _numbers(decision: SplitDecision) -> dict[str, AttributeValue]:
    """Returns what the decision was based on, and what the other way was predicted to take.

    A queue exists only with prefill workers, a prediction only after measurements.
    """
    predicted = decision.prediction
    numbers = {
        "uncached_tokens": decision.uncached_tokens,
        "threshold_tokens": decision.threshold_tokens,
        "shortest_queue": decision.shortest_queue,
        "queue_max": decision.queue_max,
        "local_ttft_s": predicted.local_ttft_s if predicted else None,
        "remote_ttft_s": predicted.remote_ttft_s if predicted else None,
        "interference_s": predicted.interference_s if predicted else None,
    }
    return {_DECISION_PREFIX + name: value for name, value in numbers.items() if value is not None}


def _mode(ready: PromptReady) -> str:
    return "remote" if ready.is_remote else "local"
