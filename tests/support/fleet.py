"""Worker records and a cache that publishes, for tests of the shared state."""

from collections.abc import Sequence

from baton.engine.base import BlocksCleared, BlocksRemoved, BlocksStored, KvEvent
from baton.state.records import WorkerRecord, WorkerRole, WorkerStats


def worker_record(
    worker_id: str = "decode-0",
    incarnation: str = "a1",
    role: WorkerRole = WorkerRole.DECODE,
    model: str = "tiny",
) -> WorkerRecord:
    """Returns the record of a worker that fits the tests' fleet."""
    return WorkerRecord(
        worker_id=worker_id,
        incarnation=incarnation,
        role=role,
        address="127.0.0.1:7001",
        started_at_s=1000.0,
        model=model,
        context_length=2048,
        vocab_size=4096,
        tokenizer_digest="d1",
        block_size=16,
        hash_scheme="xxh3",
        kv_bytes_per_token=512,
        kv_layout="float32/4",
        transfer_backend="inprocess",
        kv_blocks=256,
    )


def worker_stats(taken_at_s: float, queued_requests: int = 0) -> WorkerStats:
    """Returns figures of a worker whose pool is empty."""
    return WorkerStats(
        taken_at_s=taken_at_s,
        queued_requests=queued_requests,
        kv_blocks_total=256,
        kv_blocks_free=256,
    )


class SetCache:
    """A prefix cache without blocks: a set of hashes that reports its changes like an engine."""

    def __init__(self) -> None:
        self._held: dict[int, None] = {}
        self._events: list[KvEvent] = []

    def store(self, *hashes: int) -> None:
        self._held.update(dict.fromkeys(hashes))
        self._events.append(BlocksStored(0, hashes))

    def remove(self, *hashes: int) -> None:
        for block in hashes:
            self._held.pop(block, None)
        self._events.append(BlocksRemoved(hashes))

    def clear(self) -> None:
        self._held.clear()
        self._events.append(BlocksCleared())

    def take_kv_events(self) -> Sequence[KvEvent]:
        events, self._events = self._events, []
        return events

    def cached_hashes(self) -> Sequence[int]:
        return list(self._held)
