"""One generation over all the decode workers that it takes."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from baton.errors import BatonError
from baton.requests import FinishReason, Priority, SamplingParams
from baton.rpc.packed import put_ids
from baton.rpc.sampling import sampling_message
from baton.v1 import decode_link_pb2, types_pb2
from services.router.policies.terms import prefill_s, wait_s
from services.router.policy import Decision, PrefillView


@dataclass(slots=True)
class Generation:
    """What to generate and how far it got. Times are at the monotonic clock, in seconds.

    `hashes` are those of the prompt's blocks, `cached` what workers held of it a moment ago, by
    incarnation, None where that is too long ago. `tokens` were received, in order, from whichever
    worker; a next worker goes on after them. `failed` are the incarnations that could not go on,
    `lost_workers` of them broken and not just full. `placed_s` is when the first worker was chosen
    and `first_token_s` when a token came back. The targets are the request's own, in seconds.
    """

    request_id: str
    input_ids: Sequence[int]
    sampling: SamplingParams
    priority: Priority
    cache_salt: str
    eos_ids: frozenset[int]
    deadline_s: float | None
    traceparent: str
    hashes: Sequence[int]
    tenant: str = ""
    session_id: str = ""
    ttft_slo_s: float | None = None
    tpot_slo_s: float | None = None
    prefers_local_prefill: bool = False
    cached: Mapping[str, int] | None = None
    tokens: list[int] = field(default_factory=list)
    failed: dict[str, BatonError] = field(default_factory=dict)
    lost_workers: int = 0
    migrations: int = 0
    decision: Decision | None = None
    sent_s: float = 0.0
    placed_s: float | None = None
    first_token_s: float | None = None

    def time_left_s(self) -> float | None:
        """Returns what is left of the deadline, or None without one."""
        return None if self.deadline_s is None else self.deadline_s - time.monotonic()

    @property
    def context_ids(self) -> Sequence[int]:
        """The prompt and what was generated so far."""
        return (*self.input_ids, *self.tokens) if self.tokens else self.input_ids

    @property
    def context_tokens(self) -> int:
        """Length of the prompt and what was generated so far."""
        return len(self.input_ids) + len(self.tokens)

    def take_tokens(self, output_ids: Sequence[int]) -> None:
        """Takes tokens that came from a worker."""
        if self.first_token_s is None:
            self.first_token_s = time.monotonic()
        self.tokens.extend(output_ids)

    def forget_content(self) -> None:
        """Keeps the prompt's length only, of a generation that ended."""
        self.input_ids, self.hashes = range(len(self.input_ids)), []

    def drop_last(self, tokens: int) -> None:
        """Takes back tokens that turned out not to belong to the answer."""
        if tokens:
            del self.tokens[-tokens:]

    def finish_reason(self) -> FinishReason | None:
        """Returns why the tokens so far are all, if they are.

        Needed when a worker is lost between its last token and its word that it was the last.
        """
        if not self.tokens:
            return None
        sampling = self.sampling
        ends = set(sampling.stop_token_ids) | (set() if sampling.ignore_eos else self.eos_ids)
        if self.tokens[-1] in ends:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(self.tokens) >= sampling.max_tokens else None

    def fill_in(self, start: decode_link_pb2.DecodeStart, decision: Decision) -> None:
        """Fills in the frame that asks the chosen worker for the rest.

        It is a part of the message that travels: made apart, the prompt would be copied into it.
        """
        left = self.sampling
        if self.tokens:
            left = replace(left, max_tokens=left.max_tokens - len(self.tokens))
            start.resumed_tokens = len(self.tokens)
        start.request_id = self.request_id
        start.sampling_params.CopyFrom(sampling_message(left))
        start.priority = types_pb2.Priority.ValueType(self.priority)
        start.cache_salt = self.cache_salt
        start.prefers_local_prefill = self.prefers_local_prefill
        for candidate in decision.prefill_candidates:
            _add_candidate(start, candidate, decision, self.context_tokens)
        for holder in decision.holders:
            start.prefix_holders.add(
                worker_id=holder.worker_id,
                incarnation=holder.incarnation,
                address=holder.address,
                cached_tokens=holder.cached_tokens,
            )
        put_ids(start, decode_link_pb2.DecodeStart.INPUT_IDS_FIELD_NUMBER, self.context_ids)


def _add_candidate(
    start: decode_link_pb2.DecodeStart, view: PrefillView, decision: Decision, prompt_tokens: int
) -> None:
    """Adds a prefill worker to try, with what a policy that predicts expects of it."""
    message = start.prefill_candidates.add(
        worker_id=view.worker_id,
        incarnation=view.incarnation,
        address=view.address,
        queue_length=view.queue_length,
        cached_tokens=view.cached_tokens,
    )
    if decision.chosen is not None and view.costs.knows_prefill:
        message.expected_wait_s = wait_s(view)
        message.expected_prefill_s = prefill_s(prompt_tokens, view)
