"""The terms of a placement's cost, in seconds, from what a worker measured and holds. Pure.

`rank_prefills` and `rank_decodes` are the same terms for the whole width of a fleet at once.
"""

from collections.abc import Sequence
from typing import NamedTuple

from baton.latency import OUTPUT_TOKENS
from services.router.policy import DecodeView, PrefillView, RouteRequest, View

SLOW = 2.0
"""Slow is who takes this many times as long as the middle of its pool."""

TYPICAL = RouteRequest(prompt_tokens=2048)
"""The request by which workers are put in order before the real one is known."""


def idle_and_slow(views: Sequence[View]) -> list[View]:
    """Returns the workers without work that take much longer than the middle of the pool."""
    times = sorted(_typical_s(view) for view in views)
    limit_s = SLOW * times[(len(times) - 1) // 2]
    return [view for view in views if not _is_busy(view) and _typical_s(view) > limit_s]


def _typical_s(view: PrefillView | DecodeView) -> float:
    """Returns the seconds of a prompt and of the steps of an answer, as measured."""
    costs = view.costs
    compute_s = costs.prefill_s(TYPICAL.prompt_tokens, 0)
    if isinstance(view, PrefillView):
        return compute_s
    return compute_s + OUTPUT_TOKENS * costs.step_s(1, TYPICAL.prompt_tokens)


def _is_busy(view: PrefillView | DecodeView) -> bool:
    return bool(view.queue_length or (isinstance(view, DecodeView) and view.decode_load))


def wait_s(view: PrefillView | DecodeView) -> float:
    """Returns how long the prompts ahead of a new one take on a worker."""
    if not (view.queue_length or view.queued_tokens):
        return 0.0
    return view.costs.queue_s(view.queue_length, view.queued_tokens, view.queued_pairs)


def tpot_s(request: RouteRequest, decode: DecodeView) -> float:
    """Returns the decode step's time with the request in it."""
    return decode.standing.next_s + decode.costs.step[2] * request.prompt_tokens


def admit_s(request: RouteRequest, decode: DecodeView, *, is_local: bool) -> float:
    """Returns how long a request waits to get into the decode worker.

    A prompt computed here waits for the step under way, half of it on average; a first token that
    comes from a prefill worker is passed on at once. Both wait for room where the pool is full: it
    gets its tokens back as streams end, which each does within the steps of a mean answer.
    """
    if not decode.decode_load:
        return 0.0
    step_s = decode.standing.join_s
    begin_s = step_s / 2 if is_local else 0.0
    if decode.kv_free_tokens is None:
        return begin_s
    shortage = request.prompt_tokens - decode.cached_tokens - decode.kv_free_tokens
    if shortage <= 0:
        return begin_s
    steps = decode.costs.output_tokens
    return begin_s + step_s * steps * shortage / max(decode.resident_tokens, shortage)


def prefill_s(prompt_tokens: int, prefill: PrefillView) -> float:
    """Returns how long a prefill worker computes a prompt."""
    # Even with everything cached the last token is computed, for the next one to follow from.
    uncached = max(1, prompt_tokens - prefill.cached_tokens)
    return prefill.costs.prefill_s(uncached, prefill.cached_tokens)


def rank_prefills(
    request: RouteRequest, views: Sequence[PrefillView]
) -> list[tuple[float, PrefillView]]:
    """Returns what the prefill workers cost, whatever decodes; as fast as `rank_decodes`."""
    ranked, prompt = [], request.prompt_tokens
    for view in views:
        costs, cached = view.costs, view.cached_tokens
        uncached = prompt - cached if prompt > cached else 1
        start, linear, attention = costs.prefill
        cost_s = start + uncached * (linear + attention * (cached + uncached / 2))
        if view.queue_length or view.queued_tokens:
            cost_s += costs.queue_s(view.queue_length, view.queued_tokens, view.queued_pairs)
        ranked.append((cost_s, view))
    return ranked


class RankedDecodes(NamedTuple):
    """Decode workers by what they cost computing the prompt, and receiving it from anybody."""

    computing: list[tuple[float, DecodeView]]
    receiving: list[tuple[float, DecodeView]]


def rank_decodes(
    request: RouteRequest, views: Sequence[DecodeView], tpot_price: float, chunk_tokens: int
) -> RankedDecodes:
    """Returns the costs of all decode workers; `tpot_price` is in seconds per second of TPOT.

    This is `LatencyPolicy.evaluate` without the steps between, for the fleet's whole width: each
    call and each object here would be there once per worker and request.
    """
    computing, receiving = [], []
    prompt, token_bytes = request.prompt_tokens, request.kv_bytes_per_token
    for view in views:
        costs = view.costs
        join_s, next_s, ahead_s, streams = view.standing
        shared_s = tpot_price * (next_s + costs.step[2] * prompt)
        cached = view.cached_tokens
        missing = prompt - cached if prompt > cached else 0
        uncached = missing or 1
        start, linear, attention = costs.prefill
        alone_s = start + uncached * (linear + attention * (cached + uncached / 2))
        compute_s = ahead_s + alone_s
        if streams:
            free = view.kv_free_tokens
            if free is not None and missing > free:
                shared_s += admit_s(request, view, is_local=False)
            steps = 0.5 - (-uncached // chunk_tokens)
            compute_s += steps * join_s + tpot_price * streams * alone_s
        computing.append((shared_s + compute_s, view))
        fixed, each_byte = costs.transfer
        receiving.append((shared_s + fixed + each_byte * missing * token_bytes, view))
    return RankedDecodes(computing, receiving)
