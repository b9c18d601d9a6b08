"""What services write about themselves into Redis, as JSON.

Unknown fields are ignored so that services of two versions can share a fleet.
"""

import enum
import secrets
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field, FiniteFloat, NonNegativeFloat, NonNegativeInt, TypeAdapter

from baton.engine.base import EngineStats
from baton.latency import CostModel

Name = Annotated[str, Field(min_length=1, max_length=256)]


class WorkerRole(enum.StrEnum):
    """What a process does for the mesh."""

    PREFILL = "prefill"
    DECODE = "decode"
    ADMISSION = "admission"
    ROUTER = "router"
    AUTOSCALER = "autoscaler"

    @property
    def holds_kv(self) -> bool:
        """Tells whether processes of this role have a KV pool and a prefix cache."""
        return self in (WorkerRole.PREFILL, WorkerRole.DECODE)


def new_incarnation() -> str:
    """Returns a name for one life of a process; make one at each start."""
    return secrets.token_hex(8)


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """What one process is. The fields from `model` on matter only to roles that hold KV.

    `address` is host:port of its gRPC server; `started_at_s` is seconds since 1970.
    """

    worker_id: Name
    incarnation: Name
    role: WorkerRole
    address: str
    started_at_s: FiniteFloat
    model: str = ""
    context_length: NonNegativeInt = 0
    vocab_size: NonNegativeInt = 0
    tokenizer_digest: str = ""
    block_size: NonNegativeInt = 0
    hash_scheme: str = ""
    kv_bytes_per_token: NonNegativeInt = 0
    kv_layout: str = ""
    transfer_backend: str = ""
    kv_blocks: NonNegativeInt = 0
    prefills_locally: bool = True
    takes_prefilled: bool = True


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """Load and KV accounting of one worker at `taken_at_s`, seconds since 1970 at its clock.

    `costs` is what its computing takes, as far as it measured; None where nobody told. `kv_paths`
    counts connected peers by how bytes get to them.
    """

    taken_at_s: FiniteFloat
    queued_requests: NonNegativeInt = 0
    queued_tokens: NonNegativeInt = 0
    prefilling_requests: NonNegativeInt = 0
    decoding_requests: NonNegativeInt = 0
    kv_blocks_total: NonNegativeInt = 0
    kv_blocks_free: NonNegativeInt = 0
    kv_blocks_cached: NonNegativeInt = 0
    kv_blocks_owned: NonNegativeInt = 0
    kv_leases: NonNegativeInt = 0
    busy_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    draining: bool = False
    costs: CostModel | None = None
    kv_host_total: NonNegativeInt = 0
    kv_host_used: NonNegativeInt = 0
    preemptions: NonNegativeInt = 0
    kv_paths: dict[str, NonNegativeInt] = field(default_factory=dict, hash=False)
    queued_pairs: NonNegativeFloat | None = None

    @classmethod
    def of_engine(
        cls,
        engine: EngineStats,
        taken_at_s: float,
        draining: bool = False,
        costs: CostModel | None = None,
    ) -> "WorkerStats":
        """Returns the engine's figures with their time."""
        return cls(
            taken_at_s=taken_at_s,
            queued_requests=engine.queued_requests,
            queued_tokens=engine.queued_tokens,
            queued_pairs=engine.queued_pairs,
            prefilling_requests=engine.prefilling_requests,
            decoding_requests=engine.decoding_requests,
            kv_blocks_total=engine.kv_blocks_total,
            kv_blocks_free=engine.kv_blocks_free,
            kv_blocks_cached=engine.kv_blocks_cached,
            kv_blocks_owned=engine.kv_blocks_owned,
            kv_leases=engine.kv_leases,
            busy_share=engine.busy_share,
            draining=draining,
            costs=costs,
            kv_host_total=engine.kv_host_total,
            kv_host_used=engine.kv_host_used,
            preemptions=engine.preemptions,
        )


@dataclass(frozen=True, slots=True)
class StatsReport:
    """Figures and whose they are."""

    worker_id: Name
    incarnation: Name
    stats: WorkerStats


_RECORD = TypeAdapter(WorkerRecord)
_REPORT = TypeAdapter(StatsReport)


def encode_record(record: WorkerRecord) -> bytes:
    """Returns the record as JSON."""
    return _RECORD.dump_json(record)


def decode_record(data: bytes) -> WorkerRecord:
    """Reads what `encode_record` wrote. Raises ValueError on anything else."""
    return _RECORD.validate_json(data)


def encode_report(report: StatsReport) -> bytes:
    """Returns the report as JSON."""
    return _REPORT.dump_json(report)


def decode_report(data: bytes) -> StatsReport:
    """Reads what `encode_report` wrote. Raises ValueError on anything else."""
    return _REPORT.validate_json(data)


def fleet_contract(record: WorkerRecord) -> dict[str, str]:
    """Returns what all KV-holding workers of the record's model must agree on; else empty."""
    if not record.role.holds_kv:
        return {}
    return {
        "tokenizer_digest": record.tokenizer_digest,
        "block_size": str(record.block_size),
        "hash_scheme": record.hash_scheme,
        "kv_bytes_per_token": str(record.kv_bytes_per_token),
        "kv_layout": record.kv_layout,
        "transfer_backend": record.transfer_backend,
    }
