"""How a decode worker runs a generation: its own cache, then a prefill worker, then itself."""

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import cast

from baton.engine.base import Engine, Prefilled, TokenEvent
from baton.errors import DeadlineError, OverloadedError
from baton.worker.costs import CostBook
from services.decode.attempts import PREFILL_FAILED, AttemptFailed, nobody_delivered
from services.decode.job import DecodeUpdate, Job, PromptReady, Pulled
from services.decode.outlook import decide
from services.decode.policy import SplitDecision, SplitPolicy, SplitReason
from services.decode.pull import PullPlan, plan_pull, predicted_s
from services.decode.remote import RemotePrefill, RemotePrefiller

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Start:
    """A job as it was decided on, and what came of the prefill workers tried so far."""

    job: Job
    arrived_s: float
    matched_tokens: int
    decision: SplitDecision
    pulled: Pulled | None = None
    failed_attempts: list[AttemptFailed] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Delivered:
    worker_id: str
    prefill: RemotePrefill


class DecodeWorker:
    """Runs generations on one engine with the help of prefill workers."""

    def __init__(
        self,
        worker_id: str,
        engine: Engine,
        policy: SplitPolicy,
        remote: RemotePrefiller,
        costs: CostBook,
    ) -> None:
        self._worker_id = worker_id
        self._costs = costs
        self._engine = engine
        self._policy = policy
        self._remote = remote

    async def run(self, job: Job) -> AsyncGenerator[DecodeUpdate, None]:
        """Yields PromptReady once, then the tokens. Closing it stops the work and frees its KV.

        Raises OverloadedError (KV_POOL_FULL) when there is no room here, UnavailableError
        (PREFILL_FAILED) or OverloadedError when nobody could compute the prompt, and what the
        engine raises.
        """
        arrived_s = time.monotonic()
        pulled, failed_attempts = await self._pull(job)
        start = self._start(job, arrived_s, pulled, failed_attempts)
        async with AsyncExitStack() as held:
            delivered = await self._prefill_remotely(held, start)
            if delivered is not None:
                ready = _remote_ready(start, delivered)
                self._learn(ready)
                yield ready
                # Taken over in the first step of the iteration, which follows without a pause.
                delivered.prefill.is_taken = True
            else:
                self._check_local(start)
            admitted_s = time.monotonic()
            events = self._generate(job, delivered)
            output_tokens = 0
            async with aclosing(events):
                async for event in events:
                    output_tokens += len(event.token_ids)
                    if event.finish_reason is not None:
                        self._costs.learn_length(output_tokens)
                    if delivered is None and event.prefilled is not None:
                        yield self._local_ready(start, admitted_s, event.prefilled)
                    yield event

    async def _pull(self, job: Job) -> tuple[Pulled | None, list[AttemptFailed]]:
        """Pulls a prefix if that beats computing it; returns what came, or whose attempt failed."""
        cached = self._engine.match(job.request)
        plan = self._plan_pull(job, cached)
        if plan is None:
            return None, []
        holder = job.holders[plan.index].worker
        began_s = time.monotonic()
        try:
            receipt = await self._remote.fetch(job, holder, plan.tokens)
        except AttemptFailed as failed:
            logger.info("pull failed request_id=%s: %s", job.request.request_id, failed)
            return None, [failed]
        except OverloadedError as full:
            logger.info("pull found no room request_id=%s: %s", job.request.request_id, full)
            return None, [AttemptFailed(holder.worker_id, full)]
        self._costs.learn_pull(receipt.bytes, time.monotonic() - began_s)
        return Pulled(holder.worker_id, plan.tokens - cached), []

    def _plan_pull(self, job: Job, cached: int) -> PullPlan | None:
        if not any(holder.cached_tokens > cached for holder in job.holders):
            return None
        capabilities = self._engine.capabilities
        prompt = len(job.request.input_ids)

        def seconds_with(tokens: int) -> float | None:
            return predicted_s(self._decide(job, tokens), self._costs.model, prompt, tokens)

        return plan_pull(
            prompt,
            cached,
            [holder.cached_tokens for holder in job.holders],
            capabilities.block_size,
            seconds_with,
            lambda tokens: self._costs.pull_s(tokens * capabilities.kv_bytes_per_token),
        )

    def _decide(self, job: Job, cached: int) -> SplitDecision:
        return decide(self._policy, job, cached, self._engine, self._costs.model)

    def _start(
        self,
        job: Job,
        arrived_s: float,
        pulled: Pulled | None,
        failed_attempts: list[AttemptFailed],
    ) -> _Start:
        matched_tokens = self._engine.match(job.request)
        decision = self._decide(job, matched_tokens)
        return _Start(job, arrived_s, matched_tokens, decision, pulled, failed_attempts)

    async def _prefill_remotely(self, held: AsyncExitStack, start: _Start) -> _Delivered | None:
        """Tries the decision's prefill workers in order; returns None when none delivered."""
        job = start.job
        for index in start.decision.candidates:
            worker = job.candidates[index].worker
            left_s = job.time_left_s()
            if left_s is not None and left_s <= 0:
                raise DeadlineError("the request's deadline passed")
            try:
                prefill = await held.enter_async_context(self._remote.prefill(job, worker))
            except AttemptFailed as failed:
                logger.info(
                    "prefill attempt failed request_id=%s: %s", job.request.request_id, failed
                )
                start.failed_attempts.append(failed)
            else:
                return _Delivered(worker.worker_id, prefill)
        return None

    def _learn(self, ready: PromptReady) -> None:
        assert ready.receipt is not None
        self._costs.learn_transfer(
            ready.prefill_worker_id, ready.receipt.bytes, ready.kv_transfer_s
        )

    def _generate(self, job: Job, delivered: _Delivered | None) -> AsyncGenerator[TokenEvent, None]:
        if delivered is None:
            events = self._engine.generate(job.request)
        else:
            prefill = delivered.prefill
            events = self._engine.generate(job.request, prefill.reservation, prefill.prefilled)
        # The protocol says that closing the iterator frees, so it has `aclose`.
        return cast("AsyncGenerator[TokenEvent, None]", events)

    def _check_local(self, start: _Start) -> None:
        if not self._engine.capabilities.prefills_locally:
            raise nobody_delivered(start.failed_attempts, start.decision.reason)

    def _local_ready(self, start: _Start, admitted_s: float, prefilled: Prefilled) -> PromptReady:
        return PromptReady(
            decision=start.decision,
            reason=_local_reason(start),
            prefill_worker_id=self._worker_id,
            matched_tokens=start.matched_tokens,
            cached_tokens=prefilled.cached_tokens,
            local_cached_tokens=prefilled.cached_tokens,
            receipt=None,
            decode_admit_s=admitted_s - start.arrived_s,
            prefill_queue_s=prefilled.queue_s,
            prefill_compute_s=prefilled.compute_s,
            kv_transfer_s=0.0,
            failed_attempts=tuple(attempt.story for attempt in start.failed_attempts),
            pulled=start.pulled,
        )


def _remote_ready(start: _Start, delivered: _Delivered) -> PromptReady:
    prefill = delivered.prefill
    prefilled = prefill.prefilled
    total_s = time.monotonic() - start.arrived_s
    own_tokens = prefill.reservation.destination.cached_tokens
    return PromptReady(
        decision=start.decision,
        reason=start.decision.reason,
        prefill_worker_id=delivered.worker_id,
        matched_tokens=start.matched_tokens,
        # Both matched from the prompt's start, so the longer match contains the shorter one.
        cached_tokens=max(own_tokens, prefilled.cached_tokens),
        local_cached_tokens=own_tokens,
        receipt=prefilled.receipt,
        # Failed attempts before this one are part of deciding.
        decode_admit_s=max(0.0, total_s - prefill.round_trip_s),
        prefill_queue_s=prefilled.queue_s,
        prefill_compute_s=prefilled.compute_s,
        kv_transfer_s=max(0.0, prefill.round_trip_s - prefilled.queue_s - prefilled.compute_s),
        failed_attempts=tuple(attempt.story for attempt in start.failed_attempts),
        pulled=start.pulled,
    )


def _local_reason(start: _Start) -> str:
    """Declined and failed are different reasons: the first is load, the second is a fault."""
    if not start.failed_attempts:
        return start.decision.reason
    full = SplitReason.PREFILL_QUEUE_FULL
    declined = all(attempt.reason == full for attempt in start.failed_attempts)
    return full if declined else PREFILL_FAILED
