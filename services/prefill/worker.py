"""How a prefill worker computes a prompt: bounded queue, engine, traces."""

import time
from dataclasses import dataclass

from opentelemetry.trace import Span
from opentelemetry.util.types import AttributeValue

from baton.engine.base import Engine, Prefilled
from baton.engine.rooms import Room, as_room_engine
from baton.errors import OverloadedError, PreconditionError
from baton.kv.transfer import KvDestination
from baton.requests import EngineRequest
from baton.telemetry.names import (
    ATTR_CACHED_TOKENS,
    ATTR_DECODE_WORKER,
    ATTR_INPUT_TOKENS,
    ATTR_KV_BLOCKS,
    ATTR_KV_BYTES,
    ATTR_PREFILL_MODE,
    ATTR_PREFILL_WORKER,
    ATTR_PRIORITY,
    ATTR_REQUEST_ID,
    SPAN_KV_TRANSFER,
    SPAN_PREFILL,
)
from baton.telemetry.providers import Telemetry, traceparent_of
from baton.worker.spans import record_prefill_parts

RETRY_AFTER_S = 0.5


@dataclass(frozen=True, slots=True)
class PrefillJob:
    """A prompt to compute and where its KV goes: into blocks, or to whoever is in a room."""

    request: EngineRequest
    where: KvDestination | Room
    decode_worker_id: str
    traceparent: str = ""


class PrefillWorker:
    """Computes prompts on one engine. `queue_max` requests may wait for it."""

    def __init__(
        self, worker_id: str, engine: Engine, telemetry: Telemetry, queue_max: int
    ) -> None:
        self._worker_id = worker_id
        self._engine = engine
        self._telemetry = telemetry
        self._queue_max = queue_max
        self._inside = 0

    async def run(self, job: PrefillJob) -> Prefilled:
        """Computes the prompt; returns, or is cancelled, once no write can happen any more.

        Raises OverloadedError (PREFILL_QUEUE_FULL) at once when too many wait, and what the
        engine raises.
        """
        self._check_queue()
        arrived_s = time.monotonic()
        self._inside += 1
        try:
            with self._telemetry.span(SPAN_PREFILL, job.traceparent, self._attributes(job)) as span:
                prefilled = await self._prefill(job)
                self._record(job, span, prefilled, time.monotonic() - arrived_s)
                return prefilled
        finally:
            self._inside -= 1

    async def _prefill(self, job: PrefillJob) -> Prefilled:
        if not isinstance(job.where, Room):
            return await self._engine.prefill(job.request, job.where)
        engine = as_room_engine(self._engine)
        if engine is None:
            raise PreconditionError("this engine writes into blocks", reason="PAIRS_BY_BLOCKS")
        return await engine.prefill_in_room(job.request, job.where)

    def _check_queue(self) -> None:
        # The engine's own count lags behind a burst that arrived at once, so count here.
        waiting = self._inside - self._engine.stats().prefilling_requests
        if waiting >= self._queue_max:
            raise OverloadedError(
                f"{waiting} prompts wait here and no more may",
                reason="PREFILL_QUEUE_FULL",
                retry_after_s=RETRY_AFTER_S,
            )

    def _attributes(self, job: PrefillJob) -> dict[str, AttributeValue]:
        return {
            ATTR_REQUEST_ID: job.request.request_id,
            ATTR_PREFILL_WORKER: self._worker_id,
            ATTR_DECODE_WORKER: job.decode_worker_id,
            ATTR_PREFILL_MODE: "remote",
            ATTR_PRIORITY: job.request.priority.name.lower(),
            ATTR_INPUT_TOKENS: len(job.request.input_ids),
        }

    def _record(
        self, job: PrefillJob, span: Span, prefilled: Prefilled, started_s_ago: float
    ) -> None:
        span.set_attribute(ATTR_CACHED_TOKENS, prefilled.cached_tokens)
        receipt = prefilled.receipt
        assert receipt is not None
        attributes: dict[str, AttributeValue] = {
            ATTR_REQUEST_ID: job.request.request_id,
            ATTR_PREFILL_WORKER: self._worker_id,
            ATTR_DECODE_WORKER: job.decode_worker_id,
            ATTR_KV_BYTES: receipt.bytes,
            ATTR_KV_BLOCKS: receipt.blocks,
        }
        # Writing overlaps computing and ends after it, just now.
        moved_s = receipt.transfer_s
        self._telemetry.record(SPAN_KV_TRANSFER, job.traceparent, moved_s, moved_s, attributes)
        record_prefill_parts(
            self._telemetry,
            traceparent_of(span),
            started_s_ago,
            prefilled.queue_s,
            prefilled.compute_s,
        )
