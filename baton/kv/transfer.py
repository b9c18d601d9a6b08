"""The protocol by which a prefill worker pushes KV blocks into a decode worker's pool.

Vocabulary, as SGLang established it: a decode worker reserves blocks and *expects* a transfer
(WAITING_FOR_INPUT); the prefill worker *opens* it by the destination it was given, *pushes* each
finished chunk (TRANSFERRING) and *finishes* with a receipt (SUCCESS), or either side aborts
(FAILED). The decode worker never uses blocks before `verify` accepted the receipt, and never frees
them before the writer confirmed that it stopped.

Two implementations of equal standing: baton/kv/nixl.py (NIXL over UCX) and baton/kv/inprocess.py.
"""

import enum
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from baton.kv.segment import Segment


@dataclass(frozen=True, slots=True)
class PoolMemory:
    """The memory of one KV pool: `block_count` contiguous blocks of `block_bytes` bytes each.

    `layout` names everything two pools must share before bytes may move between them: dtype,
    layers, KV heads, head size and block size. `segment` is what the pool lies in, from its start,
    when processes of this host can map it.
    """

    base_address: int
    block_bytes: int
    block_count: int
    layout: str
    device: str = "cpu"
    segment: Segment | None = None


@dataclass(frozen=True, slots=True)
class KvDestination:
    """Where the KV of a prompt goes, made by `KvTransport.expect`.

    `cached_tokens` tokens at the start (a multiple of the block size) are already there;
    `block_ids` are the blocks for the rest, in order.
    """

    transfer_id: str
    agent: str
    cached_tokens: int
    block_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class KvReceipt:
    """What a writer says it delivered; `blocks_digest` is over the destination block ids."""

    transfer_id: str
    blocks: int
    bytes: int
    transfer_s: float
    blocks_digest: int
    tokens: int


class TransferState(enum.Enum):
    """Where a transfer stands, on either side."""

    WAITING_FOR_INPUT = "waiting_for_input"
    TRANSFERRING = "transferring"
    SUCCESS = "success"
    FAILED = "failed"


class OutgoingTransfer(Protocol):
    """The writer's side of one transfer. `push` may be called from any thread."""

    def push(self, source_blocks: Sequence[int], offset: int) -> None:
        """Starts copying `source_blocks` to destination blocks `offset...` and returns at once.

        The source blocks must stay untouched until `finish` or `abort` returned.
        """
        ...

    async def finish(self, tokens: int) -> KvReceipt:
        """Waits for all pushes. `tokens` is how many prompt tokens the KV now covers.

        Raises TransferError if any of them failed.
        """
        ...

    async def abort(self) -> None:
        """Returns once no write of this transfer can happen any more."""
        ...


class KvTransport(Protocol):
    """Moves KV blocks between the pools of workers. One per worker, named by its incarnation."""

    backend: str
    agent: str

    async def start(self, memory: PoolMemory) -> None:
        """Registers the pool's memory and starts moving."""
        ...

    async def stop(self) -> None:
        """Stops moving and forgets all peers."""
        ...

    def metadata(self) -> bytes:
        """Returns what a peer needs to reach this pool, in the backend's own format."""
        ...

    async def connect(self, agent: str, metadata: bytes, layout: str) -> None:
        """Introduces a peer; again with the same agent does nothing.

        Raises PreconditionError (LAYOUT_MISMATCH) when bytes may not move between the pools.
        """
        ...

    async def disconnect(self, agent: str) -> None:
        """Forgets a peer; its transfers fail."""
        ...

    def is_connected(self, agent: str) -> bool:
        """Tells whether the peer was introduced and not forgotten since."""
        ...

    def fault(self) -> str:
        """Returns why nothing can be moved at all now, for people; empty while it can."""
        ...

    def paths(self) -> Mapping[str, str]:
        """Returns how bytes get to each connected peer, such as "shared-memory", by agent."""
        ...

    def introducing(self) -> AbstractContextManager[None]:
        """Minds, while the block runs, writes of peers that were not introduced here yet."""
        ...

    def open(self, destination: KvDestination) -> OutgoingTransfer:
        """Opens the writer's side. Raises PreconditionError (PEER_UNKNOWN) before `connect`."""
        ...

    def expect(
        self, transfer_id: str, cached_tokens: int, block_ids: Sequence[int]
    ) -> KvDestination:
        """Opens the reader's side: from now on `block_ids` may be written by a peer."""
        ...

    async def verify(self, receipt: KvReceipt, expected_tokens: int, timeout_s: float) -> None:
        """Returns once the receipt is proven: every block arrived and nothing else was written.

        Waits for the writer's completion notices, which travel with the data and not with the
        receipt. Raises KvMismatchError when the receipt is not what was expected and
        TransferError when the notices do not come in `timeout_s`. Ends the reader's side.
        """
        ...

    def forget(self, transfer_id: str) -> None:
        """Ends the reader's side without using what arrived; unknown ids are ignored."""
        ...
