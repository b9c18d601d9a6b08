"""The answer to one request as it grows: text, tokens, and at the end what it took."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tokenizers import Tokenizer

from baton.errors import InternalError
from baton.requests import FinishReason
from baton.text import TextStream
from baton.v1 import decode_link_pb2, router_pb2, types_pb2
from services.router import timing
from services.router.generation import Generation
from services.router.relay import Progress


@dataclass(frozen=True, slots=True)
class Figures:
    """The numbers of a finished answer. Times are in seconds, `parts_ns` in nanoseconds."""

    parts_ns: Mapping[str, int]
    ttft_s: float
    tpot_s: float | None
    total_s: float


class Answer:
    """Turns a generation's events into chunks, and the whole into GenerateComplete.

    `clock` is the monotonic clock by which the request arrived at `arrived_s`. `measured_s` are
    the parts of the TTFT that the router knows already.
    """

    def __init__(
        self,
        generation: Generation,
        tokenizer: Tokenizer,
        arrived_s: float,
        measured_s: Mapping[str, float],
        clock: Callable[[], float],
    ) -> None:
        self._generation = generation
        self._text = TextStream(tokenizer, generation.sampling.stop)
        self._arrived_s = arrived_s
        self._measured_s = dict(measured_s)
        self._clock = clock
        self._first_chunk_s: float | None = None
        self._has_moved = False
        self.prefilled: decode_link_pb2.DecodePrefilled | None = None
        self.finish_reason: FinishReason | None = None
        self.kv_bytes = 0
        self._placement: router_pb2.Placement | None = None

    def note_prefilled(self, prefilled: decode_link_pb2.DecodePrefilled) -> None:
        """Takes where the prompt was computed; after a migration the first one counts."""
        self.kv_bytes += prefilled.receipt.bytes
        if self._first_chunk_s is not None:
            self._has_moved = True
            return
        self.prefilled = prefilled
        parts_s = {
            "decode_admit": prefilled.decode_admit_s,
            "prefill_queue": prefilled.prefill_queue_s,
            "prefill_compute": prefilled.prefill_compute_s,
            "kv_transfer": prefilled.kv_transfer_s,
        }
        # All that the worker does not account for went into choosing and reaching it.
        permitted_s = self._measured_s["tokenize"] + self._measured_s["admission"]
        elapsed_s = self._clock() - self._arrived_s
        self._measured_s |= parts_s
        self._measured_s["route"] = elapsed_s - permitted_s - sum(parts_s.values())

    def note_stages(self, stages: decode_link_pb2.DecodeStages) -> None:
        """Takes the prompt's stages from a worker that learnt them late; they add up as before.

        After a migration they are no part of the time to the first token.
        """
        if self._has_moved:
            return
        self._measured_s |= {
            "prefill_queue": stages.prefill_queue_s,
            "prefill_compute": stages.prefill_compute_s,
            "kv_transfer": stages.kv_transfer_s,
        }

    def take(self, progress: Progress) -> str:
        """Returns the text for new tokens, and at the end what was held back.

        Sets `finish_reason` at the end, which a stop string brings too; tokens behind it are taken
        out of `progress` and of the generation.
        """
        if progress.output_ids and self._generation.sampling.stop:
            text = self._push_until_stop(progress)
        else:
            text = self._text.push(progress.output_ids)
        if progress.finish_reason and self.finish_reason is None:
            text += self._finish(progress.finish_reason)
        return text

    def _push_until_stop(self, progress: Progress) -> str:
        text = ""
        for at, token_id in enumerate(progress.output_ids, start=1):
            text += self._text.push((token_id,))
            if self._text.stopped:
                self.finish_reason = FinishReason.STOP
                self._generation.drop_last(len(progress.output_ids) - at)
                del progress.output_ids[at:], progress.logprobs[at:]
                break
        return text

    def _finish(self, reason: int) -> str:
        """Ends the answer and returns the text that was held back until now."""
        if not self._generation.tokens:
            raise InternalError("a generation finished without a token")
        self.finish_reason = FinishReason(reason)
        return self._text.flush()

    def wrote_chunk(self) -> None:
        """Notes that a chunk left the router; the first one ends the TTFT."""
        if self._first_chunk_s is None:
            self._first_chunk_s = self._clock()

    def figures(self) -> Figures:
        """Returns the numbers of an answer that ends now."""
        assert self._first_chunk_s is not None
        end_s = self._clock()
        ttft_s = self._first_chunk_s - self._arrived_s
        return Figures(
            parts_ns=timing.ttft_parts_ns(self._measured_s, ttft_s),
            ttft_s=ttft_s,
            tpot_s=timing.tpot_s(self._first_chunk_s, end_s, len(self._generation.tokens)),
            total_s=end_s - self._arrived_s,
        )

    def complete(
        self, model: str, figures: Figures, degradations: tuple[str, ...]
    ) -> router_pb2.GenerateComplete:
        """Returns the last message of the stream."""
        generation = self._generation
        assert self.finish_reason is not None
        return router_pb2.GenerateComplete(
            request_id=generation.request_id,
            model=model,
            finish_reason=types_pb2.FinishReason.ValueType(self.finish_reason),
            usage=types_pb2.Usage(
                prompt_tokens=len(generation.input_ids),
                completion_tokens=len(generation.tokens),
                cached_tokens=self.cached_tokens,
            ),
            timing=timing.breakdown(figures.parts_ns, figures.tpot_s, figures.total_s),
            placement=self.placement(),
            degradations=degradations,
        )

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that were found in caches."""
        return self.prefilled.cached_tokens if self.prefilled else 0

    def placement(self) -> router_pb2.Placement:
        """Returns where the request ran; only after it was placed."""
        generation, prefilled = self._generation, self.prefilled
        if self._placement is not None:
            return self._placement
        assert generation.decision is not None
        placement = router_pb2.Placement(
            decode_worker_id=generation.decision.decode.worker_id,
            kv_bytes=self.kv_bytes,
            migrations=generation.migrations,
        )
        if prefilled is not None:
            placement.prefill_worker_id = prefilled.prefill_worker_id
            placement.prefill_mode = prefilled.mode
            placement.prefill_reason = prefilled.reason
        if self.finish_reason is not None:
            self._placement = placement
        return placement
