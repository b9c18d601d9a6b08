"""The writer's side of transfers: pushes become bounded writes, and writes become a receipt.

`OutgoingWrites` lives on the mover's thread; `WiredOutgoing` is its handle for everybody else.
A push is cut into writes as large as the wire wants them, of which WRITES_UNDER_WAY are posted at a
time, so that an abort waits for milliseconds of copying and not for a whole prompt. Its notice
follows once all its writes ended: one a push and not one a write, because between processes a
notice costs as much as copying a megabyte.
"""

import logging
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

from baton.blocks import blocks_digest
from baton.errors import TransferError
from baton.kv.notices import ChunkNotice, FinalNotice, PoolMetadata, encode_notice
from baton.kv.transfer import KvDestination, KvReceipt, TransferState
from baton.kv.wire import Wire, WireWrite

logger = logging.getLogger(__name__)

WRITES_UNDER_WAY = 4
"""Most writes of one transfer posted at a time."""


@dataclass(slots=True, eq=False)
class Peer:
    """A peer as the mover's thread knows it; `failure` ends all transfers to it."""

    metadata: PoolMetadata
    path: str
    write_bytes: int
    failure: TransferError | None = None
    writes_under_way: int = 0
    closed: list[Future[None]] = field(default_factory=list)

    def lose(self, why: str) -> None:
        """Ends all transfers to the peer; the first reason is kept."""
        if self.failure is None:
            agent = self.metadata.agent
            logger.info("peer lost agent=%s why=%s", agent, why)
            self.failure = TransferError(f"peer {agent} was lost: {why}", reason="PEER_LOST")


@dataclass(slots=True, eq=False)
class _Push:
    """Source blocks on their way to the destination's blocks from `offset` on."""

    sources: tuple[int, ...]
    offset: int
    unwritten: int


class _Piece(NamedTuple):
    """The blocks `start` to `end` of a push: one write."""

    push: _Push
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Posted:
    piece: _Piece
    write: WireWrite
    deadline_s: float


class OutgoingWrites:
    """One transfer's writes. All methods run on the mover's thread."""

    def __init__(self, wire: Wire, peer: Peer, destination: KvDestination, timeout_s: float):
        self.state = TransferState.TRANSFERRING
        self._wire = wire
        self._peer = peer
        self._destination = destination
        self._timeout_s = timeout_s
        self._queued: deque[_Piece] = deque()
        self._posted: deque[_Posted] = deque()
        self._written: list[_Push] = []
        self._failure: TransferError | None = None
        self._is_stuck = False
        self._busy_s = 0.0
        self._busy_since_s: float | None = None
        self._tokens = 0
        self._receipt: Future[KvReceipt] | None = None
        self._aborted: list[Future[None]] = []

    @property
    def is_idle(self) -> bool:
        """Tells that nothing is queued or posted and nobody waits."""
        return not (self._queued or self._posted or self._receipt or self._aborted)

    def push(self, sources: tuple[int, ...], offset: int) -> None:
        """Queues blocks in pieces of at most the wire's `write_bytes`."""
        push = _Push(sources, offset, len(sources))
        step = max(1, self._peer.write_bytes // max(1, self._peer.metadata.memory.block_bytes))
        for start in range(0, len(sources), step):
            self._queued.append(_Piece(push, start, min(start + step, len(sources))))

    def finish(self, tokens: int, receipt: Future[KvReceipt]) -> None:
        """Asks for the receipt, which `advance` gives once all writes ended."""
        self._tokens = tokens
        self._receipt = receipt

    def abort(self, done: Future[None]) -> None:
        """Drops what is queued; `advance` answers once all posted writes ended."""
        self._fail(TransferError(f"transfer {self._destination.transfer_id} was aborted"))
        self._aborted.append(done)

    @property
    def has_room(self) -> bool:
        """Tells that `advance` would post another write at once."""
        return bool(self._queued) and len(self._posted) < WRITES_UNDER_WAY

    def advance(self) -> bool:
        """Books ended writes, posts one and answers who waits; tells if anything changed.

        Posting may copy, so it is one at a time: commands and other transfers come in between.
        """
        before = len(self._posted), len(self._queued)
        self._reap()
        if self._peer.failure is not None:
            self._fail(self._peer.failure)
        if self._failure is not None:
            self._queued.clear()
        elif self.has_room:
            self._post(self._queued.popleft())
            # Most wires of one host copy while posting, and a sleep until the next look costs more
            # than a small write.
            self._reap()
        if not self._posted and not self._queued:
            self._rest()
        return before != (len(self._posted), len(self._queued))

    def _fail(self, failure: TransferError) -> None:
        if self._failure is None:
            self._failure = failure
            self.state = TransferState.FAILED

    def _reap(self) -> None:
        for _ in range(len(self._posted)):
            posted = self._posted.popleft()
            try:
                if not self._has_ended(posted):
                    self._posted.append(posted)
                    continue
            except TransferError as error:
                self._lose_peer(error)
            self._peer.writes_under_way -= 1
            posted.write.release()

    def _has_ended(self, posted: _Posted) -> bool:
        """Tells whether a write ended. Raises TransferError if it failed or is overdue."""
        if posted.write.is_done():
            self._book(posted.piece)
            return True
        if time.monotonic() < posted.deadline_s:
            return False
        self._is_stuck = True
        raise TransferError(
            f"a write to {self._destination.agent} did not end in {self._timeout_s:g} s",
            reason="PEER_LOST",
        )

    def _book(self, piece: _Piece) -> None:
        """Books a written piece and announces its push when that is complete."""
        push = piece.push
        push.unwritten -= piece.end - piece.start
        if push.unwritten or self._failure is not None:
            return
        targets = self._targets(push.offset, len(push.sources))
        notice = ChunkNotice(
            self._destination.transfer_id,
            len(self._written),
            push.offset,
            len(targets),
            blocks_digest(targets),
        )
        self._wire.notify(self._destination.agent, encode_notice(notice))
        self._written.append(push)

    def _post(self, piece: _Piece) -> None:
        if self._busy_since_s is None:
            self._busy_since_s = time.monotonic()
        push, start, end = piece
        targets = self._targets(push.offset + start, end - start)
        try:
            write = self._wire.write(self._destination.agent, push.sources[start:end], targets)
        except TransferError as error:
            self._lose_peer(error)
            self._queued.clear()
            return
        self._peer.writes_under_way += 1
        self._posted.append(_Posted(piece, write, time.monotonic() + self._timeout_s))

    def _targets(self, offset: int, count: int) -> tuple[int, ...]:
        return self._destination.block_ids[offset : offset + count]

    def _lose_peer(self, error: TransferError) -> None:
        self._fail(error)
        self._peer.lose(error.message)

    def _rest(self) -> None:
        """Nothing is under way: closes the books on busy time and answers who waits."""
        if self._busy_since_s is not None:
            self._busy_s += time.monotonic() - self._busy_since_s
            self._busy_since_s = None
        if self._receipt is not None:
            receipt, self._receipt = self._receipt, None
            self._answer_finish(receipt)
        for done in self._aborted:
            if self._is_stuck:
                done.set_exception(self._stuck())
            else:
                done.set_result(None)
        self._aborted.clear()

    def _answer_finish(self, answer: Future[KvReceipt]) -> None:
        receipt = self._make_receipt()
        try:
            if self._failure is not None:
                raise self._failure
            self._wire.notify(self._destination.agent, self._final_notice(receipt))
        except TransferError as error:
            self._fail(error)
            answer.set_exception(error)
            return
        self.state = TransferState.SUCCESS
        answer.set_result(receipt)

    def _make_receipt(self) -> KvReceipt:
        block_ids: list[int] = []
        for push in sorted(self._written, key=lambda push: push.offset):
            block_ids += self._targets(push.offset, len(push.sources))
        return KvReceipt(
            transfer_id=self._destination.transfer_id,
            blocks=len(block_ids),
            bytes=len(block_ids) * self._peer.metadata.memory.block_bytes,
            transfer_s=self._busy_s,
            blocks_digest=blocks_digest(block_ids),
            tokens=self._tokens,
        )

    def _final_notice(self, receipt: KvReceipt) -> bytes:
        return encode_notice(
            FinalNotice(
                receipt.transfer_id,
                len(self._written),
                receipt.blocks,
                receipt.bytes,
                receipt.blocks_digest,
                receipt.tokens,
            )
        )

    def _stuck(self) -> TransferError:
        return TransferError(
            f"transfer {self._destination.transfer_id}: a write neither ended nor failed in "
            f"{self._timeout_s:g} s; its blocks may still change",
            reason="WRITE_STUCK",
        )
