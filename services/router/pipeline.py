"""A request's way through the router: check, tokens, permit, placement, stream, account."""

import time
from contextlib import aclosing
from dataclasses import replace

from opentelemetry.trace import Span

from baton.errors import DeadlineError
from baton.telemetry import names
from baton.telemetry.providers import Telemetry, exemplar_context, trace_id_of, traceparent_of
from baton.v1 import router_pb2
from services.router.answer import Answer
from services.router.candidates import Candidates
from services.router.dispatch import Dispatcher
from services.router.explanations import Placed, actual_ttft_s, prediction_error
from services.router.generation import Generation
from services.router.incoming import Incoming, fitted, tokenize
from services.router.metrics import RouterMetrics, mode_name
from services.router.model import ServedModel
from services.router.outlet import Outlet, StreamOutlet
from services.router.permits import QUEUED, HeldPermit, PermitClient, PermitNeed
from services.router.requests import RequestRecord
from services.router.tickets import TicketCall, reported
from services.router.validation import check_request, check_tokens


class Pipeline:
    """Runs requests. Cancelling `run` cancels everything below it."""

    def __init__(
        self,
        model: ServedModel,
        candidates: Candidates,
        permits: PermitClient,
        dispatcher: Dispatcher,
        telemetry: Telemetry,
        metrics: RouterMetrics,
    ) -> None:
        self._model = model
        self._candidates = candidates
        self._permits = permits
        self._dispatcher = dispatcher
        self._telemetry = telemetry
        self._metrics = metrics

    async def run(
        self,
        message: router_pb2.GenerateRequest,
        deadline_s: float | None,
        traceparent: str,
        outlet: Outlet | TicketCall,
    ) -> None:
        """Answers one request; returns after its GenerateComplete was written.

        A TicketCall gets a ticket instead, and holds the permit until its client is done.
        `deadline_s` is at the monotonic clock. Raises a BatonError when it could not be answered.
        """
        operation = "chat" if message.messages else "text_completion"
        attributes = {
            names.ATTR_OPERATION: operation,
            names.ATTR_PROVIDER: names.PROVIDER,
            names.ATTR_REQUEST_MODEL: self._model.name,
            names.ATTR_SPAN_KIND: "LLM",
        }
        with (
            self._metrics.request(operation) as record,
            self._telemetry.span(names.SPAN_REQUEST, traceparent, attributes) as span,
        ):
            own = traceparent_of(span)
            if own and isinstance(outlet, StreamOutlet):
                await outlet.traced(own)
            if deadline_s is not None and deadline_s <= time.monotonic():
                raise DeadlineError("the deadline passed before the request arrived")
            incoming = check_request(message, self._model)
            _describe(incoming, record, span)
            generation = await self._tokenized(incoming, deadline_s, own)
            record.generation = generation
            tokenized_s = time.monotonic()
            need = self._need(incoming, generation)
            self._metrics.traffic.offered(need.uncached_tokens)
            async with self._permits.permit(need, deadline_s, generation.traceparent) as permit:
                record.verdict = permit.verdict
                if permit.verdict == QUEUED:
                    generation.cached = None  # caches have changed meanwhile
                span.set_attribute(names.ATTR_ADMISSION_VERDICT, permit.verdict)
                measured_s = {
                    "tokenize": tokenized_s - record.arrived_s,
                    "admission": time.monotonic() - tokenized_s,
                }
                _degrade(generation, permit)
                if isinstance(outlet, TicketCall):
                    await self._hand_out(record, permit, outlet)
                    return
                record.answer = Answer(
                    generation, self._model.tokenizer, record.arrived_s, measured_s, time.monotonic
                )
                await self._stream(record.answer, generation, permit, outlet)
                await self._complete(record, permit, span, outlet)

    async def _hand_out(
        self, record: RequestRecord, permit: HeldPermit, client: TicketCall
    ) -> None:
        generation = record.generation
        assert generation is not None
        with self._dispatcher.ticket(generation) as ticket:
            await client.send(ticket.message)
            while not (report := await client.next_report()).finish_reason:
                permit.prefill_done()
                ticket.prefill_done()
        record.figures = reported(report)
        permit.finished(report.output_tokens)

    async def route(self, message: router_pb2.GenerateRequest) -> Placed:
        """Returns where a request would go now; nothing is reserved and nothing remembered.

        Raises what `run` raises for a request that is wrong or that no worker can take.
        """
        incoming = check_request(message, self._model)
        generation = await self._tokenized(incoming, None, "")
        decision = self._dispatcher.decide(generation, generation.hashes)
        return Placed(decision, time.time(), len(generation.input_ids))

    async def _tokenized(
        self, incoming: Incoming, deadline_s: float | None, traceparent: str
    ) -> Generation:
        input_ids = await tokenize(incoming, self._model)
        context_length = self._candidates.context_length
        check_tokens(incoming.prompt.field, input_ids, context_length, self._model.vocab_size)
        room = context_length - len(input_ids)
        return Generation(
            request_id=incoming.request_id,
            input_ids=input_ids,
            sampling=fitted(incoming.sampling, room, self._model.vocab_size),
            priority=incoming.priority,
            cache_salt=incoming.cache_salt,
            eos_ids=self._model.eos_ids,
            deadline_s=deadline_s,
            traceparent=traceparent,
            hashes=self._candidates.hashes(input_ids, incoming.cache_salt),
            tenant=incoming.tenant,
            session_id=incoming.session_id,
            ttft_slo_s=incoming.ttft_slo_s,
            tpot_slo_s=incoming.tpot_slo_s,
        )

    def _need(self, incoming: Incoming, generation: Generation) -> PermitNeed:
        cached = generation.cached = self._candidates.cached_tokens(generation.hashes)
        prompt_tokens = len(generation.input_ids)
        return PermitNeed(
            request_id=incoming.request_id,
            tenant=incoming.tenant,
            priority=incoming.priority,
            prompt_tokens=prompt_tokens,
            uncached_tokens=prompt_tokens - max(cached.values(), default=0),
            max_tokens=generation.sampling.max_tokens,
            ttft_slo_s=incoming.ttft_slo_s,
            tpot_slo_s=incoming.tpot_slo_s,
        )

    async def _stream(
        self, answer: Answer, generation: Generation, permit: HeldPermit, outlet: Outlet
    ) -> None:
        # An async generator: closing it cancels the request on the decode worker.
        async with aclosing(self._dispatcher.stream(generation)) as pieces:
            async for progress in pieces:
                if progress.prefilled is not None:
                    permit.prefill_done()
                    answer.note_prefilled(progress.prefilled)
                if progress.stages is not None:
                    answer.note_stages(progress.stages)
                text = answer.take(progress)
                if text or progress.output_ids:
                    await outlet.chunk(text, progress.output_ids, progress.logprobs)
                    answer.wrote_chunk()
                if answer.finish_reason is not None:
                    return

    async def _complete(
        self, record: RequestRecord, permit: HeldPermit, span: Span, outlet: Outlet
    ) -> None:
        answer = record.answer
        assert answer is not None
        record.figures = answer.figures()
        permit.finished(len(record.generation.tokens) if record.generation else 0)
        if span.is_recording():
            _account(record, span)
        complete = answer.complete(self._model.name, record.figures, permit.degradations)
        complete.trace_id = record.trace_id
        await outlet.complete(complete)


def _degrade(generation: Generation, permit: HeldPermit) -> None:
    if permit.max_tokens is not None:
        limit = min(permit.max_tokens, generation.sampling.max_tokens)
        generation.sampling = replace(generation.sampling, max_tokens=limit)
    if permit.scheduling_priority is not None:
        generation.priority = permit.scheduling_priority
    generation.prefers_local_prefill = permit.prefers_local_prefill


def _describe(incoming: Incoming, record: RequestRecord, span: Span) -> None:
    record.request_id = incoming.request_id
    record.priority = incoming.priority
    record.tenant = incoming.tenant
    record.ttft_slo_s, record.tpot_slo_s = incoming.ttft_slo_s, incoming.tpot_slo_s
    record.trace_id = trace_id_of(span)
    if not span.is_recording():
        return
    record.exemplar = exemplar_context(span)
    span.set_attributes(
        {
            names.ATTR_REQUEST_ID: incoming.request_id,
            names.ATTR_PRIORITY: record.priority_name,
            names.ATTR_TENANT: incoming.tenant,
            names.ATTR_MAX_TOKENS: incoming.sampling.max_tokens,
        }
    )


def _account(record: RequestRecord, span: Span) -> None:
    generation, answer, figures = record.generation, record.answer, record.figures
    assert generation is not None
    assert answer is not None
    assert figures is not None
    assert generation.decision is not None
    assert answer.finish_reason is not None
    span.set_attributes(
        {
            names.ATTR_INPUT_TOKENS: len(generation.input_ids),
            names.ATTR_OUTPUT_TOKENS: len(generation.tokens),
            names.ATTR_CACHED_TOKENS: answer.cached_tokens,
            names.ATTR_FINISH_REASONS: [answer.finish_reason.name.lower()],
            names.ATTR_DECODE_WORKER: generation.decision.decode.worker_id,
            names.ATTR_KV_BYTES: answer.kv_bytes,
            names.ATTR_MIGRATIONS: generation.migrations,
            names.ATTR_TTFT_S: figures.ttft_s,
        }
    )
    if generation.decision.chosen is not None:
        span.set_attribute(names.ATTR_PREDICTED_TTFT_S, generation.decision.chosen.terms.ttft_s)
    error = prediction_error(generation, actual_ttft_s(generation))
    if error is not None:
        span.set_attribute(names.ATTR_PREDICTION_ERROR, error)
    for part, nanoseconds in figures.parts_ns.items():
        span.set_attribute(f"{names.TTFT_PART_PREFIX}{part}_s", nanoseconds / 1e9)
    if figures.tpot_s is not None:
        span.set_attribute(names.ATTR_TPOT_S, figures.tpot_s)
    if answer.prefilled is not None:
        span.set_attribute(names.ATTR_PREFILL_WORKER, answer.prefilled.prefill_worker_id)
        span.set_attribute(names.ATTR_PREFILL_MODE, mode_name(answer.prefilled.mode))
        span.set_attribute(names.ATTR_PREFILL_REASON, answer.prefilled.reason)
