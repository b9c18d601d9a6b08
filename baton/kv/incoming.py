"""The reader's side of transfers: what was expected, what arrived, and the proof that both agree.

A transfer belongs to the agent whose notice came first. It is proven when that agent's final
notice arrived, as many chunk notices as it announces, and these cover every expected block
exactly once. Everything runs on the event loop; transports hand notices over to it.
"""

import asyncio
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from baton.blocks import blocks_digest
from baton.errors import (
    BatonError,
    InternalError,
    KvMismatchError,
    OverloadedError,
    PreconditionError,
    TransferError,
)
from baton.kv.notices import MAX_TRANSFER_ID_BYTES, ChunkNotice, FinalNotice, decode_notice
from baton.kv.transfer import KvDestination, KvReceipt, PoolMemory, TransferState
from baton.kv.wire import ReceivedNotice

logger = logging.getLogger(__name__)

MAX_EXPECTED = 65_536
"""Most transfers expected at once; each costs one byte per block and its block ids."""


@dataclass(slots=True)
class IncomingTransfer:
    """One expected transfer. `failure` is set once and then stays."""

    block_ids: tuple[int, ...]
    arrived: bytearray
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    writer: str | None = None
    chunks: int = 0
    final: FinalNotice | None = None
    failure: BatonError | None = None

    @property
    def state(self) -> TransferState:
        """Where the transfer stands."""
        if self.failure is not None:
            return TransferState.FAILED
        if self.final is not None and self.chunks == self.final.chunks and all(self.arrived):
            return TransferState.SUCCESS
        if self.writer is None:
            return TransferState.WAITING_FOR_INPUT
        return TransferState.TRANSFERRING

    def fail(self, failure: BatonError) -> None:
        """Ends the transfer; the first failure is kept."""
        if self.failure is None:
            self.failure = failure
            self.changed.set()

    def take(self, writer: str, notice: ChunkNotice | FinalNotice) -> None:
        """Books one notice, which fails the transfer if it does not fit."""
        if self.writer is None:
            self.writer = writer
        if self.writer != writer:
            self.fail(_mismatch(notice.transfer_id, f"written by {self.writer} and by {writer}"))
            return
        problem = (
            self._take_chunk(notice)
            if isinstance(notice, ChunkNotice)
            else self._take_final(notice)
        )
        if problem is not None:
            self.fail(_mismatch(notice.transfer_id, problem))
        elif self.state is TransferState.SUCCESS:
            self.changed.set()

    def _take_chunk(self, notice: ChunkNotice) -> str | None:
        end = notice.offset + notice.blocks
        if not notice.blocks or end > len(self.block_ids):
            return f"blocks {notice.offset} to {end} of {len(self.block_ids)} were written"
        if any(self.arrived[notice.offset : end]):
            return f"blocks {notice.offset} to {end} were written twice"
        if blocks_digest(self.block_ids[notice.offset : end]) != notice.digest:
            return f"blocks {notice.offset} to {end} were written elsewhere"
        self.arrived[notice.offset : end] = b"\1" * notice.blocks
        self.chunks += 1
        return self._excess()

    def _take_final(self, notice: FinalNotice) -> str | None:
        if self.final is not None:
            return "finished twice"
        self.final = notice
        return self._excess()

    def _excess(self) -> str | None:
        """Judges the sum of the chunks once the writer said how many there are."""
        if self.final is None or self.chunks < self.final.chunks:
            return None
        if self.chunks > self.final.chunks:
            return f"{self.chunks} writes arrived, {self.final.chunks} were announced"
        if not all(self.arrived):
            return f"only {sum(self.arrived)} of {len(self.arrived)} blocks were written"
        return None


class IncomingTransfers:
    """All transfers that one worker expects."""

    def __init__(self, agent: str) -> None:
        self.late_notices = 0
        self.malformed_notices = 0
        self._agent = agent
        self._memory: PoolMemory | None = None
        self._transfers: dict[str, IncomingTransfer] = {}
        self._verifying = 0
        self._introductions = 0

    def start(self, memory: PoolMemory) -> None:
        """Names the pool whose blocks will be expected."""
        self._memory = memory

    @property
    def is_expecting(self) -> bool:
        """Tells whether any transfer is expected; safe to read from any thread."""
        return bool(self._transfers)

    @property
    def is_awaited(self) -> bool:
        """Tells whether somebody waits for notices now; safe to read from any thread."""
        return self._verifying > 0

    @property
    def minds_strangers(self) -> bool:
        """Tells whether peers that are not connected may write; safe to read from any thread."""
        return self._introductions > 0

    @contextmanager
    def introducing(self) -> Iterator[None]:
        """Minds strangers while the block runs."""
        self._introductions += 1
        try:
            yield
        finally:
            self._introductions -= 1

    def state(self, transfer_id: str) -> TransferState | None:
        """Returns where a transfer stands, None when it is not expected."""
        transfer = self._transfers.get(transfer_id)
        return transfer.state if transfer is not None else None

    def expect(
        self, transfer_id: str, cached_tokens: int, block_ids: Sequence[int]
    ) -> KvDestination:
        """Opens a transfer. See `KvTransport.expect`.

        Raises PreconditionError before `start` and for an id that is live or too long, and
        OverloadedError above MAX_EXPECTED transfers.
        """
        if self._memory is None:
            raise PreconditionError("the transport was not started", reason="NOT_STARTED")
        if transfer_id in self._transfers or len(transfer_id.encode()) > MAX_TRANSFER_ID_BYTES:
            raise PreconditionError(
                f"transfer id {transfer_id[:MAX_TRANSFER_ID_BYTES]} is in use or too long",
                reason="TRANSFER_ID",
            )
        if len(self._transfers) >= MAX_EXPECTED:
            raise OverloadedError("too many transfers are expected", reason="TRANSFER_LIMIT")
        blocks = tuple(block_ids)
        if not all(0 <= block < self._memory.block_count for block in blocks):
            raise InternalError(f"transfer {transfer_id} expects blocks outside the pool")
        self._transfers[transfer_id] = IncomingTransfer(blocks, bytearray(len(blocks)))
        return KvDestination(transfer_id, self._agent, cached_tokens, blocks)

    def take_all(self, notices: Iterable[ReceivedNotice]) -> None:
        """Books what a wire received."""
        for notice in notices:
            self.take(notice.writer, notice.raw)

    def take(self, writer: str, raw: bytes) -> None:
        """Books a notice that came from `writer`; unknown transfers and noise are counted."""
        notice = decode_notice(raw)
        if notice is None:
            self.malformed_notices += 1
            return
        transfer = self._transfers.get(notice.transfer_id)
        if transfer is None:
            self.late_notices += 1
            return
        transfer.take(writer, notice)

    async def verify(self, receipt: KvReceipt, expected_tokens: int, timeout_s: float) -> None:
        """Returns once the receipt is proven. See `KvTransport.verify`."""
        transfer = self._transfers.get(receipt.transfer_id)
        if transfer is None:
            raise _mismatch(receipt.transfer_id, "was not expected or is over")
        try:
            self._check_receipt(receipt, transfer, expected_tokens)
            await self._wait(receipt.transfer_id, transfer, timeout_s)
            _check_final(receipt, transfer)
        finally:
            self.forget(receipt.transfer_id)

    def forget(self, transfer_id: str) -> None:
        """Ends a transfer; whoever waits for it fails. Unknown ids are ignored."""
        transfer = self._transfers.pop(transfer_id, None)
        if transfer is not None and transfer.state is not TransferState.SUCCESS:
            transfer.fail(TransferError(f"transfer {transfer_id} was given up"))

    def fail_writer(self, agent: str) -> None:
        """Fails the transfers that `agent` began to write; it is gone."""
        for transfer_id, transfer in self._transfers.items():
            if transfer.writer == agent and transfer.state is not TransferState.SUCCESS:
                transfer.fail(
                    TransferError(
                        f"transfer {transfer_id}: its writer {agent} is gone", reason="PEER_LOST"
                    )
                )

    def stop(self) -> None:
        """Ends all transfers."""
        for transfer_id in list(self._transfers):
            self.forget(transfer_id)

    def _check_receipt(
        self, receipt: KvReceipt, transfer: IncomingTransfer, expected_tokens: int
    ) -> None:
        assert self._memory is not None
        blocks = len(transfer.block_ids)
        expected: tuple[tuple[str, int, int], ...] = (
            ("blocks", receipt.blocks, blocks),
            ("bytes", receipt.bytes, blocks * self._memory.block_bytes),
            ("blocks_digest", receipt.blocks_digest, blocks_digest(transfer.block_ids)),
            ("tokens", receipt.tokens, expected_tokens),
        )
        for name, said, wanted in expected:
            if said != wanted:
                raise _mismatch(receipt.transfer_id, f"{name} is {said}, not {wanted}")

    async def _wait(self, transfer_id: str, transfer: IncomingTransfer, timeout_s: float) -> None:
        self._verifying += 1
        try:
            if transfer.state in (TransferState.WAITING_FOR_INPUT, TransferState.TRANSFERRING):
                async with asyncio.timeout(timeout_s):
                    await transfer.changed.wait()
        except TimeoutError as error:
            raise TransferError(
                f"transfer {transfer_id}: {sum(transfer.arrived)} of {len(transfer.arrived)} "
                f"blocks were confirmed in {timeout_s:g} s",
                reason="TRANSFER_TIMEOUT",
            ) from error
        finally:
            self._verifying -= 1
        if transfer.failure is not None:
            raise transfer.failure


def _check_final(receipt: KvReceipt, transfer: IncomingTransfer) -> None:
    """Compares the receipt, which came by another way, with what the writing agent said."""
    final = transfer.final
    assert final is not None
    said = (final.blocks, final.bytes, final.digest, final.tokens)
    if said != (receipt.blocks, receipt.bytes, receipt.blocks_digest, receipt.tokens):
        raise _mismatch(receipt.transfer_id, "the writer's final notice says something else")


def _mismatch(transfer_id: str, what: str) -> KvMismatchError:
    return KvMismatchError(f"transfer {transfer_id}: {what}")
