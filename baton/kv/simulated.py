"""Transfers that move no data: bookkeeping and time only, for simulated engines in any process.

Who expects what, what a receipt must say, who is introduced to whom and what is refused are the
real protocol's. What is missing, and cannot be tested with it: bytes, and the notices that travel
with them. The reader therefore has the writer's receipt alone, checks every number in it against
what it reserved, and takes it for the notices too. A writer's sends queue on one link whose time
per transfer and per byte are given; `finish` waits for it.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

from baton.blocks import blocks_digest
from baton.errors import InternalError, PreconditionError, TransferError
from baton.kv.incoming import IncomingTransfers
from baton.kv.notices import (
    ChunkNotice,
    FinalNotice,
    PoolMetadata,
    decode_metadata,
    encode_metadata,
    encode_notice,
)
from baton.kv.transfer import (
    KvDestination,
    KvReceipt,
    OutgoingTransfer,
    PoolMemory,
    TransferState,
)
from baton.latency import TRANSFER_DEFAULTS

_CONNECTION = b"simulated"
_RECEIPT = "receipt"
"""Stands for the writer of the notices that are made from its receipt."""


class SimulatedTransport:
    """A `KvTransport` without bytes. Everything happens on the event loop; there is no thread.

    `costs` are the seconds of a transfer and of each byte; zeros make it instant.
    """

    backend = "simulated"

    def __init__(self, agent: str, costs: tuple[float, float] = TRANSFER_DEFAULTS) -> None:
        self.agent = agent
        self.incoming = IncomingTransfers(agent)
        self._costs = costs
        self._memory: PoolMemory | None = None
        self._metadata = b""
        self._peers: dict[str, PoolMemory] = {}
        self._link_free_at_s = 0.0

    async def start(self, memory: PoolMemory) -> None:
        """Takes note of the pool."""
        self._memory = memory
        self._metadata = encode_metadata(PoolMetadata(self.agent, memory, _CONNECTION))
        self.incoming.start(memory)

    async def stop(self) -> None:
        """Fails all transfers and forgets all peers."""
        self.incoming.stop()
        self._peers.clear()

    def metadata(self) -> bytes:
        """Returns what a peer needs. Raises PreconditionError before `start`."""
        self._started()
        return self._metadata

    async def connect(self, agent: str, metadata: bytes, layout: str) -> None:
        """Introduces a peer. See `KvTransport.connect`."""
        memory, peer = self._started(), decode_metadata(metadata)
        if peer.agent != agent:
            raise PreconditionError(
                f"metadata of {peer.agent} was given for {agent}", reason="METADATA_MISMATCH"
            )
        if peer.connection != _CONNECTION:
            raise PreconditionError(
                f"{agent} does not use simulated transfers", reason="BACKEND_MISMATCH"
            )
        theirs = (layout, peer.memory.layout, peer.memory.block_bytes)
        if theirs != (memory.layout, memory.layout, memory.block_bytes):
            raise PreconditionError(
                f"KV blocks of {agent} are {theirs}, here they are "
                f"{(memory.layout, memory.block_bytes)}; both workers must serve one model",
                reason="LAYOUT_MISMATCH",
            )
        self._peers[agent] = peer.memory

    async def disconnect(self, agent: str) -> None:
        """Forgets a peer; its transfers fail in both directions."""
        self.incoming.fail_writer(agent)
        self._peers.pop(agent, None)

    def is_connected(self, agent: str) -> bool:
        """Tells whether the peer was introduced and not forgotten since."""
        return agent in self._peers

    def fault(self) -> str:
        """Nothing can fail here."""
        return ""

    def paths(self) -> Mapping[str, str]:
        """Returns the one path there is, by agent."""
        return dict.fromkeys(self._peers, self.backend)

    def introducing(self) -> AbstractContextManager[None]:
        """Nothing is written here by anybody."""
        return nullcontext()

    def open(self, destination: KvDestination) -> OutgoingTransfer:
        """Opens the writer's side. See `KvTransport.open`."""
        memory = self._peers.get(destination.agent)
        if memory is None:
            raise PreconditionError(
                f"{destination.agent} was not introduced", reason="PEER_UNKNOWN"
            )
        if not all(0 <= block < memory.block_count for block in destination.block_ids):
            raise PreconditionError(
                f"transfer {destination.transfer_id} names blocks outside a pool of "
                f"{memory.block_count}",
                reason="DESTINATION_RANGE",
            )
        return SimulatedOutgoing(self, destination, memory.block_bytes)

    def expect(
        self, transfer_id: str, cached_tokens: int, block_ids: Sequence[int]
    ) -> KvDestination:
        """Opens the reader's side. See `IncomingTransfers.expect`."""
        return self.incoming.expect(transfer_id, cached_tokens, block_ids)

    async def verify(self, receipt: KvReceipt, expected_tokens: int, timeout_s: float) -> None:
        """Returns when the receipt says what was expected; it stands for the notices too.

        Raises KvMismatchError when it does not.
        """
        for notice in _notices(receipt):
            self.incoming.take(_RECEIPT, encode_notice(notice))
        await self.incoming.verify(receipt, expected_tokens, timeout_s)

    def forget(self, transfer_id: str) -> None:
        """Ends the reader's side; unknown ids are ignored."""
        self.incoming.forget(transfer_id)

    def reserve_link(self, blocks: int, block_bytes: int, *, is_first: bool) -> float:
        """Books time on this worker's link; returns when it will be over, monotonic seconds."""
        fixed_s, byte_s = self._costs
        begin_s = max(time.monotonic(), self._link_free_at_s)
        self._link_free_at_s = (
            begin_s + (fixed_s if is_first else 0.0) + blocks * block_bytes * byte_s
        )
        return self._link_free_at_s

    def _started(self) -> PoolMemory:
        if self._memory is None:
            raise PreconditionError("the transport was not started", reason="NOT_STARTED")
        return self._memory


class SimulatedOutgoing:
    """The writer's side of one transfer. See `OutgoingTransfer`."""

    def __init__(
        self, transport: SimulatedTransport, destination: KvDestination, block_bytes: int
    ) -> None:
        self.state = TransferState.TRANSFERRING
        self._transport = transport
        self._destination = destination
        self._block_bytes = block_bytes
        self._pushed: list[tuple[int, int]] = []
        self._began_s: float | None = None
        self._ends_s = 0.0

    def push(self, source_blocks: Sequence[int], offset: int) -> None:
        """Books the time of copying; after an abort it does nothing.

        Raises InternalError when the blocks do not fit the destination.
        """
        end, room = offset + len(source_blocks), len(self._destination.block_ids)
        if offset < 0 or end > room:
            raise InternalError(
                f"transfer {self._destination.transfer_id}: push of {len(source_blocks)} blocks "
                f"at {offset} into {room}"
            )
        if self.state is not TransferState.TRANSFERRING:
            return
        is_first = self._began_s is None
        if self._began_s is None:
            self._began_s = time.monotonic()
        self._pushed.append((offset, end))
        self._ends_s = self._transport.reserve_link(
            len(source_blocks), self._block_bytes, is_first=is_first
        )

    async def finish(self, tokens: int) -> KvReceipt:
        """Waits until the link has carried every push and returns the receipt.

        Raises TransferError when the reader was forgotten or the transfer aborted meanwhile.
        """
        left_s = self._ends_s - time.monotonic()
        if left_s > 0:
            await asyncio.sleep(left_s)
        agent = self._destination.agent
        if not self._transport.is_connected(agent):
            self.state = TransferState.FAILED
            raise TransferError(f"peer {agent} was lost", reason="PEER_LOST")
        if self.state is not TransferState.TRANSFERRING:
            raise TransferError(f"transfer {self._destination.transfer_id} was aborted")
        self.state = TransferState.SUCCESS
        return self._receipt(tokens)

    async def abort(self) -> None:
        """Ends the transfer; nothing is written anyway."""
        self.state = TransferState.FAILED

    def _receipt(self, tokens: int) -> KvReceipt:
        targets = [
            block
            for start, end in sorted(self._pushed)
            for block in self._destination.block_ids[start:end]
        ]
        began_s = self._ends_s if self._began_s is None else self._began_s
        return KvReceipt(
            transfer_id=self._destination.transfer_id,
            blocks=len(targets),
            bytes=len(targets) * self._block_bytes,
            transfer_s=self._ends_s - began_s,
            blocks_digest=blocks_digest(targets),
            tokens=tokens,
        )


def _notices(receipt: KvReceipt) -> tuple[ChunkNotice | FinalNotice, ...]:
    """Returns the notices that a wire would have brought if the receipt is true."""
    digest = receipt.blocks_digest
    return (
        ChunkNotice(receipt.transfer_id, 0, 0, receipt.blocks, digest),
        FinalNotice(receipt.transfer_id, 1, receipt.blocks, receipt.bytes, digest, receipt.tokens),
    )
