"""What a simulated decode worker knows when it decides local or remote."""

from services.decode.policy import LocalOutlook, Outlook, RemoteOutlook
from services.router.policies.terms import prefill_s, wait_s
from services.router.policy import Decision, PrefillView
from sim.views import Sight


def outlook(
    decode: Sight, decision: Decision, prompt_tokens: int, kv_bytes_per_token: int
) -> Outlook:
    """Returns how the worker stands, and what the router told it of the prefill workers."""
    worker, pool = decode.worker, decode.worker.pool
    local = LocalOutlook(
        costs=decode.costs,
        queue_length=worker.queued + worker.prefilling,
        queued_tokens=worker.backlog_tokens,
        queued_pairs=worker.backlog_pairs,
        sequences=worker.decoding,
        resident_tokens=(pool.total - pool.available) * pool.block_tokens,
        kv_bytes_per_token=kv_bytes_per_token,
    )
    predicts = decision.chosen is not None
    return Outlook(
        local,
        [
            _remote(view, prompt_tokens) if predicts else None
            for view in decision.prefill_candidates
        ],
    )


def _remote(view: PrefillView, prompt_tokens: int) -> RemoteOutlook | None:
    if not view.costs.knows_prefill:
        return None
    computing_s = prefill_s(prompt_tokens, view)
    return RemoteOutlook(view.worker_id, wait_s(view), computing_s, view.cached_tokens)
