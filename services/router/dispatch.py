"""Sends a generation to a decode worker, and to the next one when that worker is lost."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from baton.errors import (
    BatonError,
    CancelledByPeerError,
    InternalError,
    KvMismatchError,
    OverloadedError,
    TransferError,
    UnavailableError,
)
from baton.rpc.link import LinkPool
from baton.rpc.pace import LONGEST_S
from baton.telemetry.names import (
    ATTR_DECODE_WORKER,
    ATTR_MATCHED_TOKENS,
    ATTR_POLICY,
    ATTR_PREDICTED_TPOT_S,
    ATTR_PREDICTED_TTFT_S,
    ATTR_PREFILL_WORKER,
    PREDICTED_PART_PREFIX,
    SPAN_ROUTE,
)
from baton.telemetry.providers import Telemetry
from baton.v1 import decode_link_pb2, router_pb2
from services.router.candidates import Candidates
from services.router.credits import Credit, InFlightCredits, Suspects
from services.router.explanations import Explanations
from services.router.generation import Generation
from services.router.policy import Decision, Option, RouteRequest, RoutingPolicy, with_holders
from services.router.relay import Beat, Progress, Relay
from services.router.sessions import Sessions

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
NO_WORKER_RETRY_S = 1.0

_LOST = (UnavailableError, TransferError, KvMismatchError, CancelledByPeerError)
_ENGINE_DEATHS = frozenset({"STEP_FAILED", "ENGINE_DOWN"})


@dataclass(frozen=True, slots=True)
class Ticket:
    """A placement that a client runs itself; `prefill_done` ends the prefill worker's part."""

    message: router_pb2.DirectTicket
    prefill_done: Callable[[], None]


class Dispatcher:
    """Places generations on workers and carries them over from lost ones."""

    def __init__(
        self,
        candidates: Candidates,
        policy: RoutingPolicy,
        links: "LinkPool[Any, Any]",
        credits: InFlightCredits,
        suspects: Suspects,
        telemetry: Telemetry,
        offload_above_tokens: int,
        explanations: Explanations,
        sessions: Sessions,
    ) -> None:
        self._candidates = candidates
        self._policy = policy
        self._links = links
        self._credits = credits
        self._suspects = suspects
        self._telemetry = telemetry
        self._offload_above_tokens = offload_above_tokens
        self._explanations = explanations
        self._sessions = sessions
        self._beat = Beat()

    async def stream(self, generation: Generation) -> AsyncGenerator[Progress, None]:
        """Yields what came of a whole generation, piece by piece; the last one has the finish.

        A token appears once, whatever happens to workers. Raises UnavailableError (NO_WORKER) when
        no decode worker is left to try, the last worker's error after the last attempt, and
        InternalError when a worker ended well without a finish.
        """
        while (reason := generation.finish_reason()) is None:
            decision = self._place(generation)
            try:
                async with aclosing(self._attempt(generation, decision)) as pieces:
                    async for progress in pieces:
                        yield progress
            except BatonError as error:
                self._turn_away_from(generation, decision, error)
            else:
                return
        yield Progress(finish_reason=reason)

    @contextmanager
    def ticket(self, generation: Generation) -> Iterator[Ticket]:
        """Places a generation that its client runs; it counts as dispatched within the block.

        Raises UnavailableError (NO_WORKER).
        """
        decision = self._place(generation)
        message = router_pb2.DirectTicket(
            decode_worker_id=decision.decode.worker_id, decode_address=decision.decode.address
        )
        generation.fill_in(message.start, decision)
        decoding, prefilling = self._take_credits(generation, decision)
        try:
            yield Ticket(
                message,
                partial(self._credits.give_back, prefilling) if prefilling else _nothing,
            )
        finally:
            self._credits.give_back(decoding)
            if prefilling is not None:
                self._credits.give_back(prefilling)

    def decide(self, generation: Generation, hashes: Sequence[int]) -> Decision:
        """Returns where the generation would go now. Raises UnavailableError (NO_WORKER)."""
        cached = generation.cached
        if cached is None or generation.failed:
            cached = self._candidates.cached_tokens(hashes)
        decode = self._candidates.decode(cached, generation.failed)
        if not decode:
            raise _nobody_left(generation)
        request = RouteRequest(
            prompt_tokens=generation.context_tokens,
            kv_bytes_per_token=self._candidates.kv_bytes_per_token,
            ttft_slo_s=generation.ttft_slo_s,
            tpot_slo_s=generation.tpot_slo_s,
            preferred_decode=self._sessions.worker_of(generation.tenant, generation.session_id),
        )
        prefill = self._candidates.prefill(cached)
        return with_holders(self._policy.choose(request, prefill, decode), prefill, decode)

    def _place(self, generation: Generation) -> Decision:
        with self._telemetry.span(SPAN_ROUTE, generation.traceparent) as span:
            hashes = generation.hashes
            if generation.tokens:
                hashes = self._candidates.hashes(generation.context_ids, generation.cache_salt)
            decision = self.decide(generation, hashes)
            self._predict(generation, decision, hashes)
            if span.is_recording():
                span.set_attributes(_attributes(decision))
        generation.decision = decision
        generation.migrations = generation.lost_workers
        if generation.placed_s is None:
            generation.placed_s = time.monotonic()
        prompt_tokens = generation.context_tokens
        self._explanations.placed(generation.request_id, decision, prompt_tokens)
        worker_id = decision.decode.worker_id
        self._sessions.served(generation.tenant, generation.session_id, worker_id)
        return decision

    def _predict(self, generation: Generation, decision: Decision, hashes: Sequence[int]) -> None:
        decode = decision.decode
        self._candidates.predict(decode.incarnation, hashes, decode.cached_tokens)
        if self._goes_remote(generation, decision):
            prefill = decision.prefill_candidates[0]
            self._candidates.predict(prefill.incarnation, hashes, prefill.cached_tokens)

    def _goes_remote(self, generation: Generation, decision: Decision) -> bool:
        """Guesses what the decode worker will decide; only credits and predictions depend on it."""
        if generation.prefers_local_prefill:
            return False
        if decision.chosen is not None:
            return decision.chosen.prefill is not None
        if not decision.decode.prefills_locally or not decision.decode.takes_prefilled:
            return decision.decode.takes_prefilled and bool(decision.prefill_candidates)
        uncached = generation.context_tokens - decision.decode.cached_tokens
        return bool(decision.prefill_candidates) and uncached > self._offload_above_tokens

    async def _attempt(
        self, generation: Generation, decision: Decision
    ) -> AsyncGenerator[Progress, None]:
        command = decode_link_pb2.DecodeCommand()
        generation.fill_in(command.start, decision)
        decoding, prefilling = self._take_credits(generation, decision)
        relay = Relay(self._beat, has_started=bool(generation.tokens))
        call = self._links.link(decision.decode.address).open(
            command,
            timeout_s=generation.time_left_s(),
            traceparent=generation.traceparent,
            receiver=relay,
        )
        generation.sent_s = time.monotonic()
        asyncio.get_running_loop().call_soon(self._candidates.settle)
        has_finished = False
        try:
            while (progress := await relay.next(call)) is not None:
                if progress.prefilled is not None and prefilling is not None:
                    self._credits.give_back(prefilling)
                if progress.output_ids:
                    generation.take_tokens(progress.output_ids)
                has_finished = has_finished or bool(progress.finish_reason)
                yield progress
        finally:
            call.request_cancel(LONGEST_S)
            self._credits.give_back(decoding)
            if prefilling is not None:
                self._credits.give_back(prefilling)
        if not has_finished:
            raise InternalError(f"{decision.decode.worker_id} ended without a finish reason")

    def _take_credits(
        self, generation: Generation, decision: Decision
    ) -> tuple[Credit, Credit | None]:
        """Counts the dispatch at the decode worker, and at the prefill worker that may compute."""
        decode, prompt_tokens = decision.decode, generation.context_tokens
        if not self._goes_remote(generation, decision):
            uncached = prompt_tokens - decode.cached_tokens
            return self._credits.take(decode.incarnation, uncached), None
        prefill = decision.prefill_candidates[0]
        prefilling = self._credits.take(prefill.incarnation, prompt_tokens - prefill.cached_tokens)
        return self._credits.take(decode.incarnation, 0), prefilling

    def _turn_away_from(
        self, generation: Generation, decision: Decision, error: BatonError
    ) -> None:
        """Notes that a worker failed. Raises the error when trying another one cannot help."""
        is_refusal = isinstance(error, OverloadedError) or error.reason == "DRAINING"
        if not (is_refusal or _is_loss(error)):
            raise error
        generation.failed[decision.decode.incarnation] = error
        if not is_refusal:
            generation.lost_workers += 1
            self._suspects.add(decision.decode.incarnation)
        logger.warning(
            "decode worker failed request=%s worker=%s reason=%s tokens=%d: %s",
            generation.request_id,
            decision.decode.worker_id,
            error.reason,
            len(generation.tokens),
            error.message,
        )
        if len(generation.failed) >= MAX_ATTEMPTS and generation.finish_reason() is None:
            raise error


def _nothing() -> None:
    pass


def _is_loss(error: BatonError) -> bool:
    return isinstance(error, _LOST) or error.reason in _ENGINE_DEATHS


def _nobody_left(generation: Generation) -> BatonError:
    errors = list(generation.failed.values())
    if errors and isinstance(errors[-1], OverloadedError):
        return errors[-1]
    why = f"; the last one failed: {errors[-1].message}" if errors else ""
    return UnavailableError(
        f"no decode worker is left to serve this{why}; start one or retry",
        reason="NO_WORKER",
        retry_after_s=NO_WORKER_RETRY_S,
    )


def _attributes(decision: Decision) -> dict[str, str | int | float]:
    attributes: dict[str, str | int | float] = {
        ATTR_POLICY: decision.policy,
        ATTR_DECODE_WORKER: decision.decode.worker_id,
        ATTR_MATCHED_TOKENS: decision.decode.cached_tokens,
    }
    if decision.prefill_candidates:
        best = decision.prefill_candidates[0]
        attributes[ATTR_PREFILL_WORKER] = best.worker_id
        attributes[ATTR_MATCHED_TOKENS] = max(best.cached_tokens, decision.decode.cached_tokens)
    if decision.chosen is not None:
        attributes |= _prediction(decision.chosen)
    return attributes


def _prediction(chosen: Option) -> dict[str, str | int | float]:
    terms = chosen.terms
    return {
        ATTR_PREDICTED_TTFT_S: terms.ttft_s,
        ATTR_PREDICTED_TPOT_S: terms.tpot_s,
        f"{PREDICTED_PART_PREFIX}wait_s": terms.wait_s,
        f"{PREDICTED_PART_PREFIX}prefill_s": terms.prefill_s,
        f"{PREDICTED_PART_PREFIX}transfer_s": terms.transfer_s,
        f"{PREDICTED_PART_PREFIX}admit_s": terms.admit_s,
    }
