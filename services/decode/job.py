"""What a router asks a decode worker for, and what the worker tells back."""

import time
from dataclasses import dataclass

from baton.engine.base import TokenEvent
from baton.kv.transfer import KvReceipt
from baton.requests import EngineRequest
from services.decode.pairing import PrefillWorker
from services.decode.policy import RemoteOutlook, SplitDecision


@dataclass(frozen=True, slots=True)
class Candidate:
    """A prefill worker as the router sees it; `queue_length` counts requests waiting there.

    `outlook` is None before the worker was measured.
    """

    worker: PrefillWorker
    queue_length: int
    outlook: RemoteOutlook | None = None


@dataclass(frozen=True, slots=True)
class Holder:
    """A worker whose cache is expected to hold `cached_tokens` of the prompt."""

    worker: PrefillWorker
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Pulled:
    """A prefix that came from another worker's cache: `tokens` more than this one's held."""

    worker_id: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Job:
    """A generation to run; `candidates` come best first, `deadline_s` is on the monotonic clock.

    `holders` may have more of the prompt than this worker, longest first.
    """

    request: EngineRequest
    candidates: tuple[Candidate, ...] = ()
    holders: tuple[Holder, ...] = ()
    deadline_s: float | None = None
    traceparent: str = ""
    prefers_local: bool = False

    def time_left_s(self) -> float | None:
        """Returns what is left of the deadline, or None without one."""
        return None if self.deadline_s is None else self.deadline_s - time.monotonic()


@dataclass(frozen=True, slots=True)
class PromptReady:
    """The prompt's KV is here; tokens follow. Times are in seconds.

    `prefill_worker_id` computed it; `receipt` is None when that was this worker itself. The
    decision was made when this worker's cache held `matched_tokens`.
    `cached_tokens` were found in caches anywhere, `local_cached_tokens` of them in this worker's.
    `failed_attempts` came before, as "worker_id: REASON". What was `pulled` counts as cached.
    """

    decision: SplitDecision
    reason: str
    prefill_worker_id: str
    matched_tokens: int
    cached_tokens: int
    local_cached_tokens: int
    receipt: KvReceipt | None
    decode_admit_s: float
    prefill_queue_s: float
    prefill_compute_s: float
    kv_transfer_s: float
    failed_attempts: tuple[str, ...] = ()
    pulled: Pulled | None = None

    @property
    def is_remote(self) -> bool:
        """Tells whether a prefill worker computed the prompt."""
        return self.receipt is not None


@dataclass(frozen=True, slots=True)
class StagesTold:
    """The stages of a prompt, which the prefill leg told after the first token. Seconds."""

    prefill_queue_s: float
    prefill_compute_s: float
    kv_transfer_s: float


DecodeUpdate = PromptReady | StagesTold | TokenEvent
