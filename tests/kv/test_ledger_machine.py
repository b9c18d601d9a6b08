"""Pools, reservations and transfers under random faults, step by step, against a model.

Real pools, real transfers of real bytes and real notices in one process. After each step the
books must balance, no block may belong to two live destinations, and what is proven must hold the
bytes that were sent.
"""

import asyncio
import ctypes
from dataclasses import dataclass
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from baton.blocks import blocks_digest, root_hash
from baton.engine.admit import ReservationBook
from baton.engine.base import Reservation
from baton.errors import BatonError, OverloadedError
from baton.kv.inprocess import InProcessFabric, InProcessTransport
from baton.kv.pool import BlockPool
from baton.kv.transfer import KvReceipt, OutgoingTransfer, PoolMemory
from baton.requests import EngineRequest, SamplingParams
from services.decode.leases import LeaseBook, LeaseState

SIZE = 4
BLOCKS = 24
SOURCES = 64
BLOCK_BYTES = 8
LAYOUT = "machine"
VERIFY_S = 0.2
FAULTS = ("failing_writes", "partial_writes", "dropped_notices", "doubled_notices")


@dataclass(eq=False)
class Writer:
    """A prefill worker of one life."""

    transport: InProcessTransport
    memory: Any
    is_dead: bool = False


@dataclass(eq=False)
class Transfer:
    """One reservation and the transfer into it, as the model knows them."""

    tokens: tuple[int, ...]
    reservation: Reservation
    writer: Writer | None = None
    outgoing: OutgoingTransfer | None = None
    pushed: int = 0
    receipt: KvReceipt | None = None

    @property
    def name(self) -> str:
        return self.reservation.destination.transfer_id

    @property
    def blocks(self) -> tuple[int, ...]:
        return self.reservation.destination.block_ids


class LedgerMachine(RuleBasedStateMachine):
    """A decode worker's pool, the writers into it, and everything that can go wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.fabric = InProcessFabric()
        self.pool = BlockPool(BLOCKS, SIZE, lambda salt: root_hash("machine", salt))
        self.bytes = (ctypes.c_uint64 * BLOCKS)()
        self.reader = InProcessTransport("reader", self.fabric)
        self.book = ReservationBook(self.pool, self.reader)
        self.leases = LeaseBook(dict.fromkeys(LeaseState, 60.0))
        self.live: list[Transfer] = []
        self.quarantined: list[Transfer] = []
        self.writers: list[Writer] = []
        self.serial = 0
        self.run(self.reader.start(self.memory(self.bytes, BLOCKS)))
        for _ in range(2):
            self.join()

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    def memory(self, held: Any, blocks: int) -> PoolMemory:
        return PoolMemory(ctypes.addressof(held), BLOCK_BYTES, blocks, LAYOUT)

    def join(self) -> None:
        self.serial += 1
        held = (ctypes.c_uint64 * SOURCES)()
        writer = Writer(InProcessTransport(f"writer-{self.serial}", self.fabric), held)
        self.run(writer.transport.start(self.memory(held, SOURCES)))
        self.run(writer.transport.connect("reader", self.reader.metadata(), LAYOUT))
        self.writers.append(writer)

    def teardown(self) -> None:
        for writer in self.writers:
            if not writer.is_dead:
                self.run(writer.transport.stop())
        self.run(self.reader.stop())
        self.runner.close()

    def some(self, data: st.DataObject, found: list[Transfer]) -> Transfer:
        return data.draw(st.sampled_from(found))

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=30))
    def reserve(self, tokens: list[int]) -> None:
        self.serial += 1
        request = EngineRequest(f"r{self.serial}", tuple(tokens), SamplingParams(max_tokens=1))
        try:
            reservation = self.book.reserve(request)
        except OverloadedError:
            return
        transfer = Transfer(tuple(tokens), reservation)
        self.leases.open(transfer.name)
        self.live.append(transfer)

    @precondition(lambda self: any(t.writer is None for t in self.live) and self.alive())
    @rule(data=st.data())
    def expose(self, data: st.DataObject) -> None:
        transfer = self.some(data, [t for t in self.live if t.writer is None])
        writer = data.draw(st.sampled_from(self.alive()))
        self.run(writer.transport.connect("reader", self.reader.metadata(), LAYOUT))
        transfer.outgoing = writer.transport.open(transfer.reservation.destination)
        transfer.writer = writer
        self.leases.move(transfer.name, LeaseState.EXPOSED)

    @precondition(lambda self: self.writing())
    @rule(data=st.data(), fault=st.sampled_from((*FAULTS, "", "", "", "")))
    def push(self, data: st.DataObject, fault: str) -> None:
        transfer = self.some(data, self.writing())
        assert transfer.writer is not None
        assert transfer.outgoing is not None
        left = len(transfer.blocks) - transfer.pushed
        count = data.draw(st.integers(0, left))
        if fault and count:
            setattr(self.fabric.faults_towards("reader"), fault, 1)
        sources = range(transfer.pushed, transfer.pushed + count)
        for index in sources:
            transfer.writer.memory[index] = content(transfer, index)
        if count:
            transfer.outgoing.push(sources, transfer.pushed)
        transfer.pushed += count
        # One transfer at a time uses the writer's memory: wait until it was read.
        self.run(asyncio.sleep(0.002))

    @precondition(lambda self: self.writing())
    @rule(data=st.data(), is_lost=st.booleans())
    def finish(self, data: st.DataObject, is_lost: bool) -> None:
        transfer = self.some(data, self.writing())
        assert transfer.outgoing is not None
        try:
            receipt = self.run(transfer.outgoing.finish(len(transfer.tokens)))
        except BatonError:
            self.stop_writing(transfer)
            return
        transfer.receipt = receipt
        if is_lost:
            self.stop_writing(transfer)

    @precondition(lambda self: any(t.receipt for t in self.live))
    @rule(data=st.data(), lies=st.booleans(), keeps=st.booleans())
    def verify(self, data: st.DataObject, lies: bool, keeps: bool) -> None:
        transfer = self.some(data, [t for t in self.live if t.receipt])
        receipt = transfer.receipt
        assert receipt is not None
        if lies:  # claims to have delivered everything, whatever was pushed
            receipt = KvReceipt(
                transfer.name,
                len(transfer.blocks),
                len(transfer.blocks) * BLOCK_BYTES,
                receipt.transfer_s,
                blocks_digest(transfer.blocks),
                receipt.tokens,
            )
        try:
            self.run(self.reader.verify(receipt, len(transfer.tokens), VERIFY_S))
        except BatonError:
            self.stop_writing(transfer)
            return
        assert transfer.pushed == len(transfer.blocks), "a partial transfer was accepted"
        for index, block in enumerate(transfer.blocks):
            assert self.bytes[block] == content(transfer, index), "a wrong block was accepted"
        self.live.remove(transfer)
        self.leases.end(transfer.name)
        if keeps:
            self.book.keep(transfer.reservation, transfer.tokens)
        else:
            self.pool.release(self.book.take_over(transfer.reservation))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.stop_writing(self.some(data, self.live))

    @precondition(lambda self: self.alive())
    @rule(data=st.data())
    def kill_and_replace(self, data: st.DataObject) -> None:
        victim = data.draw(st.sampled_from(self.alive()))
        self.fabric.sever(victim.transport.agent)
        self.run(victim.transport.stop())
        victim.is_dead = True
        for transfer in [t for t in self.live if t.writer is victim]:
            # Nobody can say any more whether it stopped.
            self.reader.forget(transfer.name)
            self.leases.move(transfer.name, LeaseState.QUARANTINED)
            self.live.remove(transfer)
            self.quarantined.append(transfer)
        self.join()

    @precondition(lambda self: self.quarantined)
    @rule()
    def quarantine_is_over(self) -> None:
        transfer = self.quarantined.pop(0)
        self.leases.end(transfer.name)
        self.book.release(transfer.reservation)

    @invariant()
    def books_balance(self) -> None:
        self.pool.audit()
        held = self.live + self.quarantined
        assert len(self.book) == len(self.leases) == self.pool.counts().leases == len(held)
        assert not self.leases.overdue()
        if not held:
            assert self.pool.counts().owned == 0
            assert not self.reader.incoming.is_expecting

    @invariant()
    def no_block_has_two_writers(self) -> None:
        blocks = [block for t in self.live + self.quarantined for block in t.blocks]
        assert len(set(blocks)) == len(blocks)

    def alive(self) -> list[Writer]:
        return [writer for writer in self.writers if not writer.is_dead]

    def writing(self) -> list[Transfer]:
        return [t for t in self.live if t.outgoing is not None and t.receipt is None]

    def stop_writing(self, transfer: Transfer) -> None:
        """The one way out of a reservation that was not proven: stop the writer, then free."""
        self.reader.forget(transfer.name)
        if transfer.outgoing is not None:
            self.leases.move(transfer.name, LeaseState.STOPPING)
            self.run(transfer.outgoing.abort())
        self.live.remove(transfer)
        self.leases.end(transfer.name)
        self.book.release(transfer.reservation)


def content(transfer: Transfer, index: int) -> int:
    """Returns what a block of a transfer holds, unlike any other's."""
    serial = int(transfer.reservation.request_id[1:])
    return (serial << 32) | (index + 1)


LedgerMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, derandomize=True
)
test_books_balance_under_random_faults = LedgerMachine.TestCase
