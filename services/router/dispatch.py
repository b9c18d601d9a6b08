"""Sends a generation to a decode worker, and to the next one when that worker is lost."""

import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, aclosing
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
from baton.requests import FinishReason
from baton.rpc.link import LinkPool
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
from baton.v1 import decode_link_pb2, types_pb2
from services.router.candidates import Candidates
from services.router.credits import InFlightCredits, Suspects
from services.router.explanations import Explanations
from services.router.generation import Generation
from services.router.policy import Decision, Option, RouteRequest, RoutingPolicy
from services.router.sessions import Sessions

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
NO_WORKER_RETRY_S = 1.0

_LOST = (UnavailableError, TransferError, KvMismatchError, CancelledByPeerError)
_ENGINE_DEATHS = frozenset({"STEP_FAILED", "ENGINE_DOWN"})

DecodeEvent = decode_link_pb2.DecodeEvent


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

    async def stream(self, generation: Generation) -> AsyncGenerator[DecodeEvent, None]:
        """Yields the events of a whole generation; the last one is `finished`.

        A token appears once, whatever happens to workers. Raises UnavailableError (NO_WORKER) when
        no decode worker is left to try, the last worker's error after the last attempt, and
        InternalError when a worker ended well without a finish.
        """
        while (reason := generation.finish_reason()) is None:
            decision = self._place(generation)
            try:
                async with aclosing(self._attempt(generation, decision)) as events:
                    async for event in events:
                        yield event
            except BatonError as error:
                self._turn_away_from(generation, decision, error)
            else:
                return
        yield DecodeEvent(finished=decode_link_pb2.DecodeFinished(finish_reason=_number(reason)))

    def decide(self, generation: Generation, hashes: Sequence[int]) -> Decision:
        """Returns where the generation would go now. Raises UnavailableError (NO_WORKER)."""
        cached = self._candidates.cached_tokens(hashes)
        decode = self._candidates.decode(cached, generation.failed)
        if not decode:
            raise _nobody_left(generation)
        request = RouteRequest(
            prompt_tokens=len(generation.context_ids),
            kv_bytes_per_token=self._candidates.kv_bytes_per_token,
            ttft_slo_s=generation.ttft_slo_s,
            tpot_slo_s=generation.tpot_slo_s,
            preferred_decode=self._sessions.worker_of(generation.tenant, generation.session_id),
        )
        return self._policy.choose(request, self._candidates.prefill(cached), decode)

    def _place(self, generation: Generation) -> Decision:
        with self._telemetry.span(SPAN_ROUTE, generation.traceparent) as span:
            hashes = generation.hashes
            if generation.tokens:
                hashes = self._candidates.hashes(generation.context_ids, generation.cache_salt)
            decision = self.decide(generation, hashes)
            self._predict(generation, decision, hashes)
            span.set_attributes(_attributes(decision))
        generation.decision = decision
        generation.migrations = generation.lost_workers
        if generation.placed_s is None:
            generation.placed_s = time.monotonic()
        prompt_tokens = len(generation.context_ids)
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
        if decision.chosen is not None:
            return decision.chosen.prefill is not None
        uncached = len(generation.context_ids) - decision.decode.cached_tokens
        return bool(decision.prefill_candidates) and uncached > self._offload_above_tokens

    async def _attempt(
        self, generation: Generation, decision: Decision
    ) -> AsyncGenerator[DecodeEvent, None]:
        start = decode_link_pb2.DecodeCommand(start=generation.start(decision))
        with ExitStack() as decoding, ExitStack() as prefilling:
            self._hold_credits(generation, decision, decoding, prefilling)
            call = self._links.link(decision.decode.address).open(
                start, timeout_s=generation.time_left_s(), traceparent=generation.traceparent
            )
            generation.sent_s = time.monotonic()
            has_finished = False
            async with call:
                async for event in call:
                    kind = event.WhichOneof("event")
                    if kind == "tokens":
                        if generation.first_token_s is None:
                            generation.first_token_s = time.monotonic()
                        generation.tokens.extend(event.tokens.output_ids)
                    elif kind == "prefilled":
                        prefilling.close()
                    has_finished = has_finished or kind == "finished"
                    yield event
        if not has_finished:
            raise InternalError(f"{decision.decode.worker_id} ended without a finish reason")

    def _hold_credits(
        self,
        generation: Generation,
        decision: Decision,
        decoding: ExitStack,
        prefilling: ExitStack,
    ) -> None:
        decode, prompt_tokens = decision.decode, len(generation.context_ids)
        uncached = prompt_tokens - decode.cached_tokens
        if self._goes_remote(generation, decision):
            prefill = decision.prefill_candidates[0]
            missing = prompt_tokens - prefill.cached_tokens
            prefilling.enter_context(self._credits.hold(prefill.incarnation, missing))
            uncached = 0
        decoding.enter_context(self._credits.hold(decode.incarnation, uncached))

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


def _number(reason: FinishReason) -> types_pb2.FinishReason.ValueType:
    return types_pb2.FinishReason.ValueType(reason)


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
