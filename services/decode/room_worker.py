"""How a decode worker runs a generation on an engine that meets others in rooms."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace

from baton.engine.admit import check_length
from baton.engine.base import Prefilled
from baton.engine.rooms import RoomEngine
from baton.errors import DeadlineError
from baton.kv.transfer import KvReceipt
from baton.state.background import running
from baton.state.fleet import FleetView
from baton.worker.costs import CostBook
from services.decode.attempts import AttemptFailed, nobody_delivered
from services.decode.job import DecodeUpdate, Job, PromptReady, StagesTold
from services.decode.kinds import CLOSE_IDLE_EVERY_S
from services.decode.legs import Legs, Met
from services.decode.outlook import decide
from services.decode.policy import SplitDecision, SplitPolicy, fit_to_engine
from services.decode.room_pairs import RoomPairs

logger = logging.getLogger(__name__)


class RoomDecodeWorker:
    """Runs generations on one engine: with a prefill engine, or alone where it can."""

    def __init__(
        self, worker_id: str, engine: RoomEngine, policy: SplitPolicy, legs: Legs, costs: CostBook
    ) -> None:
        self._worker_id = worker_id
        self._engine = engine
        self._policy = policy
        self._legs = legs
        self._costs = costs

    async def run(self, job: Job) -> AsyncGenerator[DecodeUpdate, None]:
        """Yields PromptReady once, then the tokens. Closing it stops the work and frees its KV.

        Raises UnavailableError (PREFILL_FAILED) when no pair delivered, OverloadedError when all
        of them were full, and what the engine raises.
        """
        arrived_s, capabilities = time.monotonic(), self._engine.capabilities
        # Before either leg is dispatched; what the tokens are, both engines check.
        check_length(job.request, capabilities)
        if job.traceparent:
            job = replace(job, request=replace(job.request, traceparent=job.traceparent))
        matched = self._engine.match(job.request)
        decision = fit_to_engine(
            decide(self._policy, job, matched, self._engine, self._costs.model),
            len(job.candidates),
            prefills_locally=capabilities.prefills_locally,
            takes_prefilled=capabilities.takes_prefilled,
        )
        if capabilities.prefills_locally:
            updates = self._run_alone(job, decision, matched, arrived_s)
        else:
            updates = self._run_paired(job, decision, matched, arrived_s)
        async with aclosing(updates):
            async for update in updates:
                yield update

    async def _run_alone(
        self, job: Job, decision: SplitDecision, matched: int, arrived_s: float
    ) -> AsyncGenerator[DecodeUpdate, None]:
        admit_s = time.monotonic() - arrived_s
        events = self._engine.generate(job.request)
        async with aclosing(events):  # type: ignore[type-var]  # the protocol: closing frees
            async for event in events:
                if event.prefilled is not None:
                    yield _ready(decision, self._worker_id, matched, admit_s, event.prefilled)
                yield event

    async def _run_paired(
        self, job: Job, decision: SplitDecision, matched: int, arrived_s: float
    ) -> AsyncGenerator[DecodeUpdate, None]:
        failed: list[AttemptFailed] = []
        async with AsyncExitStack() as held:
            for index in decision.candidates:
                worker = job.candidates[index].worker
                left_s = job.time_left_s()
                if left_s is not None and left_s <= 0:
                    raise DeadlineError("the request's deadline passed")
                dispatched_s = time.monotonic()
                try:
                    met = await held.enter_async_context(self._legs.meet(job, worker))
                except AttemptFailed as attempt:
                    logger.info(
                        "pair attempt failed request_id=%s: %s", job.request.request_id, attempt
                    )
                    failed.append(attempt)
                    continue
                tokens = len(job.request.input_ids)
                ready = self._met(decision, worker.worker_id, matched, met, tokens, failed)
                yield replace(ready, decode_admit_s=dispatched_s - arrived_s)
                is_told = met.prefill is not None
                yield met.first
                async for event in met.rest:
                    if event.finish_reason is not None and not is_told and met.prefill is not None:
                        yield _stages(met, met.prefill)
                    yield event
                self._learn(worker.worker_id, met)
                return
        raise nobody_delivered(failed, decision.reason)

    def _met(
        self,
        decision: SplitDecision,
        worker_id: str,
        matched: int,
        met: Met,
        prompt_tokens: int,
        failed: Sequence[AttemptFailed],
    ) -> PromptReady:
        """Returns what is known of a prompt whose KV came."""
        cached_here = _cached_here(met)
        prefill = met.prefill or Prefilled(0, None, None, 0.0, 0.0, cached_here)
        stages = _stages(met, prefill)
        receipt = self._receipt(prefill, cached_here, prompt_tokens)
        return PromptReady(
            decision=decision,
            reason=decision.reason,
            prefill_worker_id=worker_id,
            matched_tokens=matched,
            cached_tokens=max(cached_here, prefill.cached_tokens),
            local_cached_tokens=cached_here,
            receipt=receipt,
            decode_admit_s=0.0,
            prefill_queue_s=stages.prefill_queue_s,
            prefill_compute_s=stages.prefill_compute_s,
            kv_transfer_s=stages.kv_transfer_s,
            failed_attempts=tuple(attempt.story for attempt in failed),
        )

    def _learn(self, worker_id: str, met: Met) -> None:
        """Learns what moving KV took; the prefill leg told its part in the meantime."""
        if (prefill := met.prefill) is not None:
            moved = self._receipt(prefill, _cached_here(met), 0).bytes
            self._costs.learn_transfer(worker_id, moved, _stages(met, prefill).kv_transfer_s)

    def _receipt(self, prefill: Prefilled, cached_here: int, prompt_tokens: int) -> KvReceipt:
        """Returns what was moved: what the prompt has beyond this engine's own cache."""
        per_token = self._engine.capabilities.kv_bytes_per_token
        size = self._engine.capabilities.block_size
        given = prefill.receipt or KvReceipt("", 0, 0, 0.0, 0, prompt_tokens)
        tokens = max(0, given.tokens - cached_here)
        return replace(given, blocks=-(-tokens // size), bytes=tokens * per_token)


class RoomUpkeep:
    """Upkeep where engines meet in rooms."""

    def __init__(self, engine: RoomEngine, pairs: RoomPairs, legs: Legs) -> None:
        self._engine = engine
        self._pairs = pairs
        self._legs = legs

    def connected(self) -> list[str]:
        """See Upkeep."""
        return self._pairs.connected()

    async def prepare(self, fleet: FleetView) -> None:
        """Proves every pair that can be had by one real transfer."""
        if self._engine.capabilities.takes_prefilled:
            await self._pairs.prepare(fleet)

    async def run(self, fleet: FleetView) -> None:
        """See Upkeep."""
        try:
            async with running(self._close_idle_links()):
                if self._engine.capabilities.takes_prefilled:
                    await self._pairs.run(fleet)
                await asyncio.Event().wait()
        finally:
            await self._legs.close()

    async def _close_idle_links(self) -> None:
        while True:
            await asyncio.sleep(CLOSE_IDLE_EVERY_S)
            await self._legs.close_idle()


def _stages(met: Met, prefill: Prefilled) -> StagesTold:
    """Returns where the time to a first token went; what no part explains is transfer."""
    rest_s = met.total_s - prefill.queue_s - prefill.compute_s
    return StagesTold(prefill.queue_s, prefill.compute_s, max(0.0, rest_s))


def _cached_here(met: Met) -> int:
    own = met.first.prefilled
    return own.cached_tokens if own is not None else 0


def _ready(
    decision: SplitDecision, worker_id: str, matched: int, admit_s: float, prefilled: Prefilled
) -> PromptReady:
    return PromptReady(
        decision=decision,
        reason=decision.reason,
        prefill_worker_id=worker_id,
        matched_tokens=matched,
        cached_tokens=prefilled.cached_tokens,
        local_cached_tokens=prefilled.cached_tokens,
        receipt=None,
        decode_admit_s=admit_s,
        prefill_queue_s=prefilled.queue_s,
        prefill_compute_s=prefilled.compute_s,
        kv_transfer_s=0.0,
    )
