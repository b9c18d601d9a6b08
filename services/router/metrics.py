"""What the router counts and logs about each request, once, at its end."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from baton.errors import BatonError
from baton.state.fleet import FleetView
from baton.state.records import WorkerRole
from baton.state.traffic import TrafficMeter
from baton.telemetry import names
from baton.telemetry.providers import Telemetry
from baton.v1 import types_pb2
from services.router.answer import Answer
from services.router.drift import IndexDrift, expected_tokens, observe_generation
from services.router.explanations import Explanations, outcome_of
from services.router.generation import Generation
from services.router.requests import BUG, CANCELLED, RequestBook, RequestRecord

logger = logging.getLogger(__name__)


class RouterMetrics:
    """The router's meters. Attributes are few and bounded: never a request's or a tenant's name."""

    def __init__(
        self,
        telemetry: Telemetry,
        model: str,
        explanations: Explanations,
        book: RequestBook,
        traffic: TrafficMeter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._explanations = explanations
        self._book = book
        self.traffic = traffic or TrafficMeter(0)
        self._clock = clock
        self._ttft = telemetry.histogram(names.TTFT)
        self._tpot = telemetry.histogram(names.TPOT)
        self._duration = telemetry.histogram(names.DURATION)
        self._requests = telemetry.counter(names.REQUESTS)
        self._prefills = telemetry.counter(names.PREFILLS)
        self._cached_tokens = telemetry.counter(names.CACHED_TOKENS)
        self._predicted_tokens = telemetry.counter(names.PREDICTED_CACHED_TOKENS)
        self._kv_bytes = telemetry.counter(names.KV_BYTES)
        self._kv_seconds = telemetry.counter(names.KV_SECONDS)
        self._slo_requests = telemetry.counter(names.SLO_REQUESTS)
        self._migrations = telemetry.counter(names.MIGRATIONS)
        self.drift = IndexDrift()
        telemetry.gauge(names.INDEX_DRIFT, lambda: [(self.drift.worst, {})])
        self._prediction_error = telemetry.histogram(names.PREDICTION_ERROR)
        self.active = 0
        telemetry.gauge(names.ACTIVE, self._stages)
        self._migrations.add(0, self._common("chat"))  # there from the start, for rates to work

    def _common(self, operation: str) -> dict[str, str]:
        return {
            names.ATTR_OPERATION: operation,
            names.ATTR_PROVIDER: names.PROVIDER,
            names.ATTR_REQUEST_MODEL: self._model,
        }

    def _stages(self) -> Iterator[tuple[float, dict[str, str]]]:
        waiting = self._book.waiting
        yield waiting, {names.ATTR_STAGE: "admission"}
        yield self.active - waiting, {names.ATTR_STAGE: "running"}

    @contextmanager
    def request(self, operation: str) -> Iterator[RequestRecord]:
        """Counts a request for the length of the block and records how it ended."""
        record = RequestRecord(operation, self._clock(), error_type=BUG)
        self.active += 1
        self._book.started(record)
        try:
            yield record
            record.error_type = ""
        except BatonError as error:
            record.error_type = error.reason
            raise
        except asyncio.CancelledError:
            record.error_type = CANCELLED
            raise
        finally:
            self.active -= 1
            self._finish(record)

    def _finish(self, record: RequestRecord) -> None:
        duration_s = self._clock() - record.arrived_s
        common = self._common(record.operation)
        outcome = (
            {**common, names.ATTR_ERROR_TYPE: record.error_type} if record.error_type else common
        )
        self._duration.record(duration_s, outcome, record.exemplar)
        self._requests.add(
            1,
            {
                **outcome,
                names.ATTR_PRIORITY: record.priority_name,
                names.ATTR_ADMISSION_VERDICT: record.verdict,
            },
        )
        if record.generation is not None and record.generation.migrations:
            self._migrations.add(record.generation.migrations, common)
        if record.answer is not None:
            self._count_prefill(record.answer, record.generation, common)
        if record.figures is not None:
            self._ttft.record(record.figures.ttft_s, common, record.exemplar)
            if record.figures.tpot_s is not None:
                self._tpot.record(record.figures.tpot_s, common, record.exemplar)
        self._explain(record, common)
        self._log(record, duration_s)
        slo_outcome = self._book.ended(record)
        self._count_traffic(record, slo_outcome)
        if slo_outcome:
            outcome_of_slo = {
                names.ATTR_PRIORITY: record.priority_name,
                names.ATTR_SLO_OUTCOME: slo_outcome,
            }
            self._slo_requests.add(1, outcome_of_slo)

    def _count_traffic(self, record: RequestRecord, slo_outcome: str) -> None:
        if slo_outcome:
            self.traffic.ended(is_met=slo_outcome == "met")
        if record.figures is not None and record.generation is not None:
            generation = record.generation
            self.traffic.finished(len(generation.input_ids), len(generation.tokens))

    def _explain(self, record: RequestRecord, common: dict[str, str]) -> None:
        generation = record.generation
        if generation is None or generation.decision is None:
            return
        outcome = outcome_of(generation, record.answer, record.figures, record.error_type)
        self._explanations.ended(record.request_id, outcome)
        if outcome.prediction_error is not None:
            policy = {**common, names.ATTR_POLICY: generation.decision.policy}
            self._prediction_error.record(outcome.prediction_error, policy)

    def _count_prefill(
        self, answer: Answer, generation: Generation | None, common: dict[str, str]
    ) -> None:
        prefilled = answer.prefilled
        if prefilled is None or generation is None:
            return
        self._prefills.add(
            1,
            {
                **common,
                names.ATTR_PREFILL_MODE: mode_name(prefilled.mode),
                names.ATTR_PREFILL_REASON: prefilled.reason,
            },
        )
        self._cached_tokens.add(prefilled.cached_tokens, common)
        observe_generation(
            self.drift, generation, prefilled.prefill_worker_id, prefilled.cached_tokens
        )
        expected = expected_tokens(generation, prefilled.prefill_worker_id)
        if expected is not None:
            self._predicted_tokens.add(expected, common)
        self._count_transfer(answer, generation)

    def _count_transfer(self, answer: Answer, generation: Generation) -> None:
        if answer.prefilled is None or generation.decision is None or not answer.kv_bytes:
            return
        pair = {
            names.ATTR_PREFILL_WORKER: answer.prefilled.prefill_worker_id,
            names.ATTR_DECODE_WORKER: generation.decision.decode.worker_id,
        }
        self._kv_bytes.add(answer.kv_bytes, pair)
        self._kv_seconds.add(answer.prefilled.receipt.transfer_s, pair)

    def _log(self, record: RequestRecord, duration_s: float) -> None:
        generation, figures = record.generation, record.figures
        decision = generation.decision if generation else None
        if not logger.isEnabledFor(logging.INFO):
            return
        logger.info(
            "request %s request_id=%s priority=%s admission=%s prompt_tokens=%d tokens=%d "
            "cached_tokens=%d decode=%s migrations=%d ttft_s=%.4f duration_s=%.4f",
            record.error_type or "ok",
            record.request_id,
            record.priority_name,
            record.verdict,
            len(generation.input_ids) if generation else 0,
            len(generation.tokens) if generation else 0,
            record.answer.cached_tokens if record.answer else 0,
            decision.decode.worker_id if decision else "",
            generation.migrations if generation else 0,
            figures.ttft_s if figures else 0.0,
            duration_s,
        )


def mode_name(mode: types_pb2.PrefillMode.ValueType) -> str:
    """Returns "local", "remote" or "unspecified"."""
    return types_pb2.PrefillMode.Name(mode).removeprefix("PREFILL_MODE_").lower()


def worker_states(fleet: FleetView) -> Iterator[tuple[float, dict[str, str]]]:
    """Yields how many workers of each role are ready, draining or stale; zeros included."""
    now_s = time.monotonic()
    for role in (WorkerRole.PREFILL, WorkerRole.DECODE):
        counts = dict.fromkeys(("ready", "draining", "stale"), 0)
        for view in fleet.workers(role):
            is_draining = view.stats is not None and view.stats.draining
            state = "draining" if is_draining else "stale" if view.is_stale(now_s) else "ready"
            counts[state] += 1
        for state, count in counts.items():
            yield count, {names.ATTR_ROLE: role.value, names.ATTR_STATE: state}
