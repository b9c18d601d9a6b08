"""What the split policy is asked with, whatever kind the engine is."""

from baton.engine.base import Engine
from baton.latency import CostModel
from services.decode.job import Job
from services.decode.policy import (
    LocalOutlook,
    Outlook,
    SplitDecision,
    SplitPolicy,
    preferring_local,
)


def decide(
    policy: SplitPolicy, job: Job, matched_tokens: int, engine: Engine, costs: CostModel
) -> SplitDecision:
    """Returns the policy's decision for a prompt of which the cache here holds `matched_tokens`."""
    decision = policy.decide(
        len(job.request.input_ids),
        matched_tokens,
        [candidate.queue_length for candidate in job.candidates],
        _outlook(job, engine, costs),
    )
    if job.prefers_local and engine.capabilities.prefills_locally:
        return preferring_local(decision)
    return decision


def _outlook(job: Job, engine: Engine, costs: CostModel) -> Outlook:
    stats, capabilities = engine.stats(), engine.capabilities
    local = LocalOutlook(
        costs=costs,
        queue_length=stats.queued_requests + stats.prefilling_requests,
        queued_tokens=stats.queued_tokens,
        queued_pairs=stats.queued_pairs,
        sequences=stats.decoding_requests,
        resident_tokens=stats.kv_blocks_owned * capabilities.block_size,
        kv_bytes_per_token=capabilities.kv_bytes_per_token,
    )
    return Outlook(local, [candidate.outlook for candidate in job.candidates])
