"""A worker and its figures as the message that its own service and the router both send."""

from google.protobuf import duration_pb2

from baton.rpc.status import duration
from baton.state.records import WorkerRecord, WorkerRole, WorkerStats
from baton.v1 import types_pb2

LONGEST_AGE_S = 1e9
"""Stands for "never": an age must be finite on the wire."""

_ROLES = {
    WorkerRole.PREFILL: types_pb2.WORKER_ROLE_PREFILL,
    WorkerRole.DECODE: types_pb2.WORKER_ROLE_DECODE,
}


def worker_info(
    record: WorkerRecord, stats: WorkerStats | None, age_s: float
) -> types_pb2.WorkerInfo:
    """Returns a worker and, once it sent any, its figures with their age in seconds."""
    message = types_pb2.WorkerInfo(
        worker_id=record.worker_id,
        incarnation=record.incarnation,
        role=_ROLES[record.role],
        address=record.address,
        model=record.model,
        transfer_backend=record.transfer_backend,
    )
    if stats is not None:
        message.stats.CopyFrom(_stats_message(stats))
        message.stats_age.CopyFrom(age_message(age_s))
    return message


def age_message(age_s: float) -> duration_pb2.Duration:
    """Returns an age; clocks that disagree make it negative by a little, which is none."""
    return duration(min(max(age_s, 0.0), LONGEST_AGE_S))


def _stats_message(stats: WorkerStats) -> types_pb2.WorkerStats:
    message = types_pb2.WorkerStats(
        queued_requests=stats.queued_requests,
        queued_tokens=stats.queued_tokens,
        prefilling_requests=stats.prefilling_requests,
        decoding_requests=stats.decoding_requests,
        kv_blocks_total=stats.kv_blocks_total,
        kv_blocks_free=stats.kv_blocks_free,
        kv_blocks_cached=stats.kv_blocks_cached,
        kv_blocks_owned=stats.kv_blocks_owned,
        kv_leases=stats.kv_leases,
        busy_share=stats.busy_share,
        draining=stats.draining,
        kv_host_total=stats.kv_host_total,
        kv_host_used=stats.kv_host_used,
        preemptions=stats.preemptions,
        kv_paths=stats.kv_paths,
    )
    message.taken_at.FromNanoseconds(round(stats.taken_at_s * 1e9))
    return message
