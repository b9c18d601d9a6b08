"""SGLang's load snapshot as the mesh's figures. Pure."""

from collections.abc import Mapping
from typing import Any

from baton.blocks import blocks_for
from baton.engine.base import EngineStats


def engine_stats(
    snapshot: Mapping[str, Any],
    *,
    kv_blocks: int,
    block_size: int,
    indexed_blocks: int,
    asked: int,
    answering: int,
) -> EngineStats:
    """Returns the figures of one moment.

    What SGLang calls used is owned by requests, transfers under way included; blocks are free only
    when it says so. Of the rest, as many are cached as its events named. The snapshot is up to one
    read old, so requests `asked` for and not `answering` yet count as waiting at least.
    """
    queues = snapshot.get("disaggregation") or {}
    running = int(snapshot.get("num_running_reqs", 0))
    waiting = max(int(snapshot.get("num_waiting_reqs", 0)), asked - answering - running)
    owned = min(kv_blocks, blocks_for(int(snapshot.get("num_used_tokens", 0)), block_size))
    cached = min(kv_blocks - owned, max(0, indexed_blocks - owned))
    in_transfer = int(queues.get("decode_transfer_queue_reqs", 0))
    is_prefill = queues.get("mode") == "prefill"
    return EngineStats(
        queued_requests=max(0, waiting - in_transfer),
        queued_tokens=int(snapshot.get("num_waiting_uncached_tokens", 0)),
        prefilling_requests=running if is_prefill else 0,
        decoding_requests=0 if is_prefill else running,
        kv_blocks_total=kv_blocks,
        kv_blocks_free=kv_blocks - owned - cached,
        kv_blocks_cached=cached,
        kv_blocks_owned=owned,
        kv_leases=in_transfer,
        busy_share=min(1.0, max(0.0, float(snapshot.get("utilization", 0.0)))),
    )
