"""Pairs of decode and prefill workers: made once, eagerly, and forgotten with their workers."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from baton.errors import BatonError, UnavailableError
from baton.kv.inprocess import InProcessFabric, InProcessTransport
from baton.kv.transfer import KvDestination
from baton.rpc.server import ServiceServer
from baton.v1 import prefill_pb2, prefill_pb2_grpc
from baton.worker import messages
from baton.worker.readers import LinkedReaders, Readers
from services.decode.pairing import PrefillWorker
from services.decode.peers import Peers
from services.decode.reservations import Reservations
from tests.support.cable import Cable
from tests.support.fake_engine import FakeEngine
from tests.support.waiting import eventually
from tests.support.worker_fleet import WorkerFleet, read

LONG = tuple(range(1, 400))


class Introducer(prefill_pb2_grpc.PrefillServiceServicer):
    """A prefill worker that only makes pairs; `held` delays its answers."""

    def __init__(self, fabric: InProcessFabric, agent: str) -> None:
        self.engine = FakeEngine()
        self.transport = InProcessTransport(agent, fabric)
        self.peers = Readers(self.transport)
        self.server = ServiceServer("127.0.0.1", 0, ["baton.v1.PrefillService"])
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.introductions = 0
        self.answers_as = agent

    async def ConnectPeer(self, request: Any, context: Any) -> prefill_pb2.ConnectPeerResponse:
        self.introductions += 1
        await self.may_answer.wait()
        probe = KvDestination(request.probe_id, request.agent, 0, (request.probe_block,))
        receipt = await self.peers.introduce(
            request.agent, request.agent_metadata, request.kv_layout, probe
        )
        return prefill_pb2.ConnectPeerResponse(
            agent=self.answers_as,
            agent_metadata=self.transport.metadata(),
            probe=messages.receipt_message(receipt),
        )

    async def start(self) -> PrefillWorker:
        await self.engine.start(self.transport)
        prefill_pb2_grpc.add_PrefillServiceServicer_to_server(self, self.server.grpc)
        await self.server.start()
        return PrefillWorker("p0", self.transport.agent, self.server.address)

    async def stop(self) -> None:
        await self.server.drain(0)
        await self.engine.stop()


class Side:
    """The decode worker's side of pairs, without its service."""

    def __init__(self, fabric: InProcessFabric) -> None:
        self.engine = FakeEngine()
        self.transport = InProcessTransport("d0", fabric)
        self.reservations = Reservations(self.engine, self.transport, quarantine_s=0.2)
        self.peers = Peers(self.engine, self.transport, self.reservations)

    async def use(self, worker: PrefillWorker) -> None:
        async with self.peers.using(worker):
            pass

    def owned_blocks(self) -> int:
        return self.engine.stats().kv_blocks_owned


@pytest.fixture
async def fabric() -> InProcessFabric:
    return InProcessFabric()


@pytest.fixture
async def side(fabric: InProcessFabric) -> Any:
    side = Side(fabric)
    await side.engine.start(side.transport)
    keeping = asyncio.create_task(side.reservations.run())
    await asyncio.sleep(0)
    yield side
    keeping.cancel()
    await side.engine.stop()


@pytest.fixture
async def introducer(fabric: InProcessFabric) -> Any:
    introducer = Introducer(fabric, "life-1")
    yield introducer
    await introducer.stop()


async def test_many_first_uses_make_one_pair(side: Side, introducer: Introducer) -> None:
    worker = await introducer.start()
    await asyncio.gather(*(side.use(worker) for _ in range(20)))
    assert introducer.introductions == 1
    assert side.peers.connected() == ["p0"]
    assert side.owned_blocks() == 0


async def test_unreachable_worker_fails_at_once_and_is_left_alone(side: Side) -> None:
    cable = Cable()
    await cable.lay()
    await cable.cut()
    worker = PrefillWorker("p0", "life-1", cable.address)
    with pytest.raises(UnavailableError) as first:
        await side.use(worker)
    with pytest.raises(UnavailableError) as second:
        await side.use(worker)
    assert first.value.reason == "PEER_UNREACHABLE"
    assert second.value.reason == "PEER_QUARANTINED"
    assert side.owned_blocks() == 0


async def test_failed_probe_makes_no_pair(
    side: Side, introducer: Introducer, fabric: InProcessFabric
) -> None:
    worker = await introducer.start()
    fabric.faults_towards("d0").doubled_notices = 1
    with pytest.raises(BatonError):
        await side.use(worker)
    assert side.peers.connected() == []
    await eventually(lambda: side.owned_blocks() == 0)


async def test_pair_is_tried_again_after_its_backoff(
    side: Side, introducer: Introducer, fabric: InProcessFabric
) -> None:
    worker = await introducer.start()
    fabric.faults_towards("d0").doubled_notices = 1
    with pytest.raises(BatonError):
        await side.use(worker)

    async def is_made() -> bool:
        try:
            await side.use(worker)
        except UnavailableError:
            return False
        return True

    await eventually(is_made)
    assert introducer.introductions == 2


async def test_other_life_at_the_address_is_not_trusted(side: Side, introducer: Introducer) -> None:
    worker = await introducer.start()
    introducer.answers_as = "life-2"
    with pytest.raises(UnavailableError) as refused:
        await side.use(worker)
    assert refused.value.reason == "INCARNATION_CHANGED"
    assert side.peers.connected() == []


async def test_cancelled_introduction_gives_its_block_back_later(
    side: Side, introducer: Introducer
) -> None:
    worker = await introducer.start()
    introducer.may_answer.clear()
    use = asyncio.create_task(side.use(worker))
    await eventually(lambda: introducer.introductions == 1)
    use.cancel()
    await asyncio.wait([use])
    assert side.owned_blocks() == 1, "the probe may still be written"
    await eventually(lambda: side.owned_blocks() == 0)


async def test_next_life_replaces_the_former_one(side: Side, fabric: InProcessFabric) -> None:
    lives: Sequence[str] = [f"life-{n}" for n in range(5)]
    port = 0
    for life in lives:
        introducer = Introducer(fabric, life)
        introducer.server.port = port
        worker = await introducer.start()
        port = introducer.server.port
        await side.use(worker)
        await introducer.stop()
    assert [life for life in lives if side.transport.is_connected(life)] == ["life-4"]
    assert side.owned_blocks() == 0


async def test_prefill_worker_forgets_who_hung_up(fabric: InProcessFabric) -> None:
    engine, transport = FakeEngine(), InProcessTransport("p0", fabric)
    await engine.start(transport)
    peers = Readers(transport)
    for life in range(50):
        decode, theirs = FakeEngine(), InProcessTransport(f"d-{life}", fabric)
        await decode.start(theirs)
        probe = theirs.expect("probe", 0, (0,))
        layout = decode.capabilities.kv_layout
        await peers.introduce(theirs.agent, theirs.metadata(), layout, probe)
        links = LinkedReaders(), LinkedReaders()
        for link in links:
            with peers.writing(link, theirs.agent):
                pass
        await peers.close_link(links[0])
        assert transport.is_connected(theirs.agent), "another link still uses it"
        await peers.close_link(links[1])
        assert not transport.is_connected(theirs.agent)
        await decode.stop()
    assert peers.known() == []
    await engine.stop()


async def test_workers_are_paired_before_the_first_request(fleet: WorkerFleet) -> None:
    decode = await fleet.decode("d0", FakeEngine())
    await fleet.prefill("p0", FakeEngine())
    await fleet.prefill("p1", FakeEngine())
    await eventually(lambda: decode.service.connected_prefill_workers() == ["p0", "p1"])


async def test_stopped_prefill_worker_is_forgotten(
    fleet: WorkerFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.decode.peers.FORGET_AFTER_S", 0.0)
    decode = await fleet.decode("d0", FakeEngine(blocks=256))
    prefill = await fleet.prefill("p0", FakeEngine(blocks=256))
    await read(fleet.ask(decode, LONG, [prefill.candidate()]))
    prefill.stop.set()
    await prefill.task
    await eventually(lambda: not decode.transport.is_connected(prefill.incarnation))
    assert decode.service.connected_prefill_workers() == []
