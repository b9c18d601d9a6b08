"""The simulated transport refuses what the real ones refuse, and takes its time."""

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import NamedTuple

import pytest

from baton.errors import KvMismatchError, PreconditionError, TransferError
from baton.kv.simulated import SimulatedTransport
from baton.kv.transfer import KvReceipt, PoolMemory

MEMORY = PoolMemory(0, 1000, 32, "layout")


class Pair(NamedTuple):
    writer: SimulatedTransport
    reader: SimulatedTransport


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    pair = Pair(SimulatedTransport("w", (0.01, 1e-6)), SimulatedTransport("r"))
    for transport in pair:
        await transport.start(MEMORY)
    await pair.writer.connect("r", pair.reader.metadata(), "layout")
    yield pair
    for transport in pair:
        await transport.stop()


async def moved(pair: Pair, tokens: int = 50) -> KvReceipt:
    outgoing = pair.writer.open(pair.reader.expect("t", 16, (3, 1, 2)))
    outgoing.push((7, 8), 0)
    outgoing.push((9,), 2)
    return await outgoing.finish(tokens)


async def test_true_receipt_is_accepted_once(pair: Pair) -> None:
    receipt = await moved(pair)
    assert (receipt.blocks, receipt.bytes) == (3, 3000)
    await pair.reader.verify(receipt, 50, 1.0)
    with pytest.raises(KvMismatchError):
        await pair.reader.verify(receipt, 50, 1.0)


@pytest.mark.parametrize(
    "lie", [{"blocks": 2}, {"bytes": 2000}, {"tokens": 49}, {"blocks_digest": 1}]
)
async def test_any_other_receipt_is_refused(pair: Pair, lie: dict[str, int]) -> None:
    receipt = replace(await moved(pair), **lie)
    with pytest.raises(KvMismatchError):
        await pair.reader.verify(receipt, 50, 1.0)
    assert pair.reader.incoming.state("t") is None


async def test_unfinished_prompt_gives_a_receipt_that_is_refused(pair: Pair) -> None:
    outgoing = pair.writer.open(pair.reader.expect("t", 0, (3, 1, 2)))
    outgoing.push((7, 8), 0)
    receipt = await outgoing.finish(50)
    with pytest.raises(KvMismatchError):
        await pair.reader.verify(receipt, 50, 1.0)


async def test_transfers_share_one_link(pair: Pair) -> None:
    began_s = time.monotonic()
    both = [pair.writer.open(pair.reader.expect(name, 0, range(8))) for name in "ab"]
    for outgoing in both:
        outgoing.push(range(8), 0)
    receipts = [await outgoing.finish(1) for outgoing in both]
    assert time.monotonic() - began_s >= 2 * (0.01 + 8000 * 1e-6)
    assert receipts[1].transfer_s > receipts[0].transfer_s


async def test_lost_reader_fails_the_transfer(pair: Pair) -> None:
    outgoing = pair.writer.open(pair.reader.expect("t", 0, (1,)))
    outgoing.push((1,), 0)
    await pair.writer.disconnect("r")
    with pytest.raises(TransferError):
        await outgoing.finish(1)
    with pytest.raises(PreconditionError):
        pair.writer.open(pair.reader.expect("u", 0, (1,)))


async def test_pools_of_another_layout_are_refused(pair: Pair) -> None:
    with pytest.raises(PreconditionError, match="one model"):
        await pair.writer.connect("r", pair.reader.metadata(), "other")
    with pytest.raises(PreconditionError, match="pool"):
        pair.writer.open(replace(pair.reader.expect("t", 0, (1,)), block_ids=(99,)))
