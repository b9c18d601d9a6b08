"""The transfer protocol in one process: what arrives, what is refused, what is survived."""

import asyncio
import ctypes
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.blocks import blocks_digest
from baton.errors import InternalError, KvMismatchError, PreconditionError, TransferError
from baton.kv.incoming import IncomingTransfers
from baton.kv.inprocess import Faults, InProcessFabric, InProcessTransport
from baton.kv.notices import (
    ChunkNotice,
    FinalNotice,
    PoolMetadata,
    decode_metadata,
    decode_notice,
    encode_metadata,
    encode_notice,
)
from baton.kv.transfer import KvDestination, KvReceipt, PoolMemory, TransferState
from baton.kv.wire import WRITE_BYTES

BLOCK_BYTES = 64
BLOCKS = 32
TOKENS = 100
LAYOUT = "float32/2x2x4/4"


@dataclass
class Worker:
    """A transport and the pool that it moves."""

    transport: InProcessTransport
    pool: ctypes.Array[ctypes.c_char]

    def fill(self, block: int, value: int) -> None:
        ctypes.memset(ctypes.addressof(self.pool) + block * BLOCK_BYTES, value, BLOCK_BYTES)

    def value(self, block: int) -> int:
        content = set(self.pool.raw[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES])
        assert len(content) == 1
        return content.pop()


@dataclass
class Pair:
    """A writer that knows a reader, and the fabric between them."""

    fabric: InProcessFabric
    writer: Worker
    reader: Worker

    @property
    def faults(self) -> Faults:
        return self.fabric.faults_towards("reader")

    async def send(
        self, sources: list[int], targets: list[int], transfer_id: str = "t"
    ) -> KvReceipt:
        destination = self.reader.transport.expect(transfer_id, 0, targets)
        outgoing = self.writer.transport.open(destination)
        outgoing.push(sources, 0)
        return await outgoing.finish(TOKENS)

    async def verify(self, receipt: KvReceipt, timeout_s: float = 5.0) -> None:
        await self.reader.transport.verify(receipt, TOKENS, timeout_s)


async def start_worker(
    agent: str, fabric: InProcessFabric, layout: str = LAYOUT, timeout_s: float = 5.0
) -> Worker:
    pool = ctypes.create_string_buffer(BLOCK_BYTES * BLOCKS)
    transport = InProcessTransport(agent, fabric, timeout_s)
    memory = PoolMemory(ctypes.addressof(pool), BLOCK_BYTES, BLOCKS, layout)
    await transport.start(memory)
    return Worker(transport, pool)


@asynccontextmanager
async def running_pair(timeout_s: float = 5.0) -> AsyncIterator[Pair]:
    fabric = InProcessFabric()
    writer = await start_worker("writer", fabric, timeout_s=timeout_s)
    reader = await start_worker("reader", fabric, timeout_s=timeout_s)
    try:
        await writer.transport.connect("reader", reader.transport.metadata(), LAYOUT)
        yield Pair(fabric, writer, reader)
    finally:
        await writer.transport.stop()
        await reader.transport.stop()


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with running_pair() as running:
        yield running


async def until(is_true: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline_s, "condition did not come true"
        await asyncio.sleep(0.001)


async def test_pushed_blocks_arrive_where_they_were_expected(pair: Pair) -> None:
    for block, value in ((3, 30), (4, 40), (9, 90)):
        pair.writer.fill(block, value)

    receipt = await pair.send([3, 4, 9], [7, 1, 2])
    await pair.verify(receipt)

    assert [pair.reader.value(block) for block in (7, 1, 2, 0)] == [30, 40, 90, 0]
    assert (receipt.blocks, receipt.bytes, receipt.tokens) == (3, 3 * BLOCK_BYTES, TOKENS)
    assert receipt.blocks_digest == blocks_digest([7, 1, 2])


async def test_chunks_may_be_pushed_out_of_order_and_overlap_in_time(pair: Pair) -> None:
    pair.faults.delay_s = 0.005
    destination = pair.reader.transport.expect("t", 0, list(range(8)))
    outgoing = pair.writer.transport.open(destination)
    for block in range(16, 24):
        pair.writer.fill(block, block)

    for offset in (4, 0, 6, 2):
        outgoing.push(range(16 + offset, 18 + offset), offset)
    receipt = await outgoing.finish(TOKENS)
    await pair.verify(receipt)

    assert [pair.reader.value(block) for block in range(8)] == list(range(16, 24))
    assert 0.005 <= receipt.transfer_s < 0.005 * 4 + 1


async def test_push_may_be_called_from_another_thread(pair: Pair) -> None:
    pair.writer.fill(5, 55)
    outgoing = pair.writer.transport.open(pair.reader.transport.expect("t", 0, [6]))

    await asyncio.to_thread(outgoing.push, [5], 0)
    await pair.verify(await outgoing.finish(TOKENS))

    assert pair.reader.value(6) == 55


async def test_transfer_of_no_blocks_is_proven_by_its_final_notice(pair: Pair) -> None:
    receipt = await pair.send([], [])

    await pair.verify(receipt)

    assert (receipt.blocks, receipt.bytes, receipt.transfer_s) == (0, 0, 0.0)


async def test_large_push_is_cut_into_several_writes() -> None:
    block_bytes = WRITE_BYTES // 2
    fabric = InProcessFabric()
    transports = [InProcessTransport(agent, fabric) for agent in ("writer", "reader")]
    for transport in transports:
        await transport.start(PoolMemory(0, block_bytes, BLOCKS, LAYOUT))
    writer, reader = transports
    await writer.connect("reader", reader.metadata(), LAYOUT)

    outgoing = writer.open(reader.expect("t", 0, range(BLOCKS)))
    outgoing.push(range(BLOCKS), 0)
    receipt = await outgoing.finish(TOKENS)
    await reader.verify(receipt, TOKENS, 5.0)

    assert receipt.bytes == BLOCKS * block_bytes
    for transport in transports:
        await transport.stop()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"transfer_id": "other"}, "was not expected"),
        ({"blocks": 1}, "blocks is 1"),
        ({"bytes": 3 * BLOCK_BYTES}, "bytes is 192"),
        ({"blocks_digest": 1}, "blocks_digest is 1"),
        ({"tokens": TOKENS - 1}, "tokens is 99"),
    ],
)
async def test_wrong_receipt_is_refused(pair: Pair, change: dict[str, Any], says: str) -> None:
    receipt = await pair.send([1, 2], [3, 4])

    with pytest.raises(KvMismatchError, match=says):
        await pair.verify(replace(receipt, **change))


async def test_verified_transfer_is_over(pair: Pair) -> None:
    receipt = await pair.send([1], [2])
    await pair.verify(receipt)

    with pytest.raises(KvMismatchError, match="was not expected"):
        await pair.verify(receipt)


async def test_receipt_that_differs_from_the_writers_own_notice_is_refused(pair: Pair) -> None:
    receipt = await pair.send([1], [2])

    with pytest.raises(KvMismatchError, match="says something else"):
        await pair.reader.transport.verify(replace(receipt, tokens=7), 7, 5.0)


async def test_missing_notice_times_out(pair: Pair) -> None:
    pair.faults.dropped_notices = 1
    receipt = await pair.send([1, 2], [3, 4])

    with pytest.raises(TransferError, match="0 of 2 blocks") as caught:
        await pair.verify(receipt, timeout_s=0.05)

    assert caught.value.reason == "TRANSFER_TIMEOUT"


async def test_partial_transfer_is_refused_without_waiting(pair: Pair) -> None:
    destination = pair.reader.transport.expect("t", 0, [3, 4, 5])
    outgoing = pair.writer.transport.open(destination)
    outgoing.push([1, 2], 0)
    partial = await outgoing.finish(TOKENS)
    lie = replace(
        partial,
        blocks=3,
        bytes=3 * BLOCK_BYTES,
        blocks_digest=blocks_digest(destination.block_ids),
    )

    with pytest.raises(KvMismatchError, match="only 2 of 3 blocks"):
        await pair.verify(lie, timeout_s=60.0)


async def test_blocks_written_twice_are_refused(pair: Pair) -> None:
    outgoing = pair.writer.transport.open(pair.reader.transport.expect("t", 0, [3]))
    outgoing.push([1], 0)
    outgoing.push([1], 0)
    receipt = replace(
        await outgoing.finish(TOKENS),
        blocks=1,
        bytes=BLOCK_BYTES,
        blocks_digest=blocks_digest([3]),
    )

    with pytest.raises(KvMismatchError, match="written twice"):
        await pair.verify(receipt)


async def test_duplicate_notice_is_refused(pair: Pair) -> None:
    pair.faults.doubled_notices = 1
    receipt = await pair.send([1], [2])

    with pytest.raises(KvMismatchError, match="written twice"):
        await pair.verify(receipt)


async def test_blocks_written_elsewhere_are_refused(pair: Pair) -> None:
    destination = pair.reader.transport.expect("t", 0, [3, 4])
    outgoing = pair.writer.transport.open(replace(destination, block_ids=(3, 5)))
    outgoing.push([1, 2], 0)
    receipt = replace(
        await outgoing.finish(TOKENS), blocks_digest=blocks_digest(destination.block_ids)
    )

    with pytest.raises(KvMismatchError, match="written elsewhere"):
        await pair.verify(receipt)


async def test_second_writer_is_refused(pair: Pair) -> None:
    outgoing = pair.writer.transport.open(pair.reader.transport.expect("t", 0, [3, 4]))
    outgoing.push([1], 0)
    await until(lambda: pair.reader.transport.incoming.state("t") is TransferState.TRANSFERRING)
    pair.faults.forged_writer = "intruder"
    outgoing.push([2], 1)
    receipt = await outgoing.finish(TOKENS)

    with pytest.raises(KvMismatchError, match="written by writer and by intruder"):
        await pair.verify(receipt)


async def test_notices_of_forgotten_transfers_are_ignored_and_counted(pair: Pair) -> None:
    destination = pair.reader.transport.expect("t", 0, [3])
    pair.reader.transport.forget("t")
    pair.reader.transport.forget("unknown")
    outgoing = pair.writer.transport.open(destination)
    outgoing.push([1], 0)
    await outgoing.finish(TOKENS)

    incoming = pair.reader.transport.incoming
    await until(lambda: incoming.late_notices == 2)
    assert not incoming.is_expecting


async def test_forgetting_wakes_whoever_verifies(pair: Pair) -> None:
    pair.faults.dropped_notices = 2
    receipt = await pair.send([1], [2])
    verifying = asyncio.create_task(pair.verify(receipt, timeout_s=60.0))
    await until(lambda: pair.reader.transport.incoming.is_awaited)

    pair.reader.transport.forget("t")

    with pytest.raises(TransferError, match="given up"):
        await verifying


@pytest.mark.parametrize("fault", ["failing_writes", "partial_writes"])
async def test_failed_write_fails_the_transfer_and_loses_the_peer_only(
    pair: Pair, fault: str
) -> None:
    other = await start_worker("other", pair.fabric)
    await pair.writer.transport.connect("other", other.transport.metadata(), LAYOUT)
    setattr(pair.faults, fault, 1)

    with pytest.raises(TransferError) as caught:
        await pair.send([1, 2], [3, 4])

    assert caught.value.reason == "TRANSFER_FAILED"
    assert not pair.writer.transport.is_connected("reader")
    with pytest.raises(PreconditionError, match="was not introduced"):
        await pair.send([1], [2], "u")
    outgoing = pair.writer.transport.open(other.transport.expect("v", 0, [5]))
    outgoing.push([1], 0)
    await other.transport.verify(await outgoing.finish(TOKENS), TOKENS, 5.0)
    await other.transport.stop()


async def test_lost_peer_can_be_introduced_again(pair: Pair) -> None:
    pair.faults.failing_writes = 1
    with pytest.raises(TransferError):
        await pair.send([1], [2])

    await until(lambda: not pair.writer.transport.is_connected("reader"))
    await pair.writer.transport.connect("reader", pair.reader.transport.metadata(), LAYOUT)
    await pair.verify(await pair.send([1], [2], "u"))


async def test_severed_peer_is_lost(pair: Pair) -> None:
    pair.fabric.sever("reader")

    with pytest.raises(TransferError) as caught:
        await pair.send([1], [2])

    assert caught.value.reason == "PEER_LOST"


async def test_disconnect_fails_transfers_in_both_directions(pair: Pair) -> None:
    outgoing = pair.writer.transport.open(pair.reader.transport.expect("t", 0, [3, 4]))
    outgoing.push([1], 0)
    incoming = pair.reader.transport.incoming
    await until(lambda: incoming.state("t") is TransferState.TRANSFERRING)

    await pair.writer.transport.disconnect("reader")
    await pair.reader.transport.disconnect("writer")

    outgoing.push([2], 1)
    with pytest.raises(TransferError) as caught:
        await outgoing.finish(TOKENS)
    assert caught.value.reason == "PEER_LOST"
    assert incoming.state("t") is TransferState.FAILED


async def test_abort_waits_for_posted_writes_and_drops_the_rest(pair: Pair) -> None:
    pair.faults.hanging_writes = 1
    pair.writer.fill(1, 11)
    pair.writer.fill(2, 22)
    outgoing = pair.writer.transport.open(pair.reader.transport.expect("t", 0, [3, 4]))
    outgoing.push([1], 0)
    await until(lambda: pair.faults.hanging_writes == 0)

    aborting = asyncio.create_task(outgoing.abort())
    await asyncio.sleep(0)
    outgoing.push([2], 1)
    pair.faults.release_hanging()
    await aborting

    assert pair.reader.value(3) == 11
    pair.writer.fill(1, 99)
    outgoing.push([1], 0)
    await outgoing.abort()
    assert (pair.reader.value(3), pair.reader.value(4)) == (11, 0)


async def test_abort_of_an_untouched_transfer_returns(pair: Pair) -> None:
    outgoing = pair.writer.transport.open(pair.reader.transport.expect("t", 0, [3]))

    await outgoing.abort()


async def test_write_that_never_ends_is_reported_after_the_deadline() -> None:
    async with running_pair(timeout_s=0.1) as pair:
        pair.faults.hanging_writes = 1
        outgoing = pair.writer.transport.open(pair.reader.transport.expect("t", 0, [3]))
        outgoing.push([1], 0)

        with pytest.raises(TransferError) as caught:
            await outgoing.finish(TOKENS)
        assert caught.value.reason == "PEER_LOST"
        with pytest.raises(TransferError) as caught:
            await outgoing.abort()
        assert caught.value.reason == "WRITE_STUCK"


async def test_stop_fails_what_is_under_way(pair: Pair) -> None:
    receipt = await pair.send([1], [2])
    outgoing = pair.writer.transport.open(KvDestination("u", "reader", 0, (3,)))

    await pair.writer.transport.stop()
    await pair.reader.transport.stop()

    with pytest.raises(TransferError) as caught:
        await outgoing.finish(TOKENS)
    assert caught.value.reason == "MOVER_ENDED"
    with pytest.raises(KvMismatchError):
        await pair.verify(receipt)


async def test_other_layout_is_refused(pair: Pair) -> None:
    other = await start_worker("other", pair.fabric, layout="bfloat16/2x2x4/4")

    for layout in (LAYOUT, "bfloat16/2x2x4/4"):
        with pytest.raises(PreconditionError) as caught:
            await pair.writer.transport.connect("other", other.transport.metadata(), layout)
        assert caught.value.reason == "LAYOUT_MISMATCH"
    await other.transport.stop()


async def test_metadata_of_another_agent_is_refused(pair: Pair) -> None:
    with pytest.raises(PreconditionError) as caught:
        await pair.writer.transport.connect("other", pair.reader.transport.metadata(), LAYOUT)

    assert caught.value.reason == "METADATA_MISMATCH"


async def test_destination_outside_the_peers_pool_is_refused(pair: Pair) -> None:
    with pytest.raises(PreconditionError) as caught:
        pair.writer.transport.open(KvDestination("t", "reader", 0, (BLOCKS,)))

    assert caught.value.reason == "DESTINATION_RANGE"


async def test_push_beyond_the_destination_is_a_bug(pair: Pair) -> None:
    outgoing = pair.writer.transport.open(KvDestination("t", "reader", 0, (1,)))

    with pytest.raises(InternalError):
        outgoing.push([1], 1)


async def test_transfer_id_in_use_is_refused(pair: Pair) -> None:
    pair.reader.transport.expect("t", 0, [1])

    with pytest.raises(PreconditionError):
        pair.reader.transport.expect("t", 0, [2])


def test_transport_must_be_started() -> None:
    transport = InProcessTransport("writer", InProcessFabric())

    with pytest.raises(PreconditionError):
        transport.metadata()
    with pytest.raises(PreconditionError):
        transport.expect("t", 0, [])


names = st.text(max_size=20)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)


@given(
    st.one_of(
        st.builds(ChunkNotice, names, u32, u32, u32, u64),
        st.builds(FinalNotice, names, u32, u32, u64, u64, u32),
    )
)
def test_notices_survive_encoding(notice: ChunkNotice | FinalNotice) -> None:
    assert decode_notice(encode_notice(notice)) == notice


@given(st.binary(max_size=200))
def test_noise_is_never_a_notice_that_raises(raw: bytes) -> None:
    incoming = IncomingTransfers("reader")

    incoming.take("writer", raw)

    assert incoming.malformed_notices + incoming.late_notices == 1


@given(names, names, st.integers(0, 2**40), st.integers(1, 2**20), st.binary(max_size=99))
def test_metadata_survives_encoding_and_damage_is_noticed(
    agent: str, layout: str, address: int, count: int, connection: bytes
) -> None:
    metadata = PoolMetadata(agent, PoolMemory(address, 4096, count, layout, "cuda:1"), connection)
    raw = encode_metadata(metadata)

    assert decode_metadata(raw) == metadata
    for damaged in (raw[:-1], raw + b"x", raw[:-1] + bytes([raw[-1] ^ 1]), b"", b"\0" * 99):
        with pytest.raises(PreconditionError):
            decode_metadata(damaged)
