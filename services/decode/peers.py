"""Pairs of this decode worker with prefill workers: made once, proven by a probe, then trusted.

A pair belongs to one incarnation of the prefill worker. It is made by `ConnectPeer`, in which the
prefill worker writes one block here, and used only after that block's receipt was verified. A pair
that cannot be made is left alone for a time that doubles with each failure.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc

from baton.engine.base import Engine, Reservation
from baton.errors import BatonError, OverloadedError, TransferError, UnavailableError
from baton.kv.transfer import KvTransport
from baton.requests import EngineRequest, SamplingParams
from baton.rpc.channels import open_channel
from baton.rpc.status import from_rpc_error
from baton.state.fleet import FleetView
from baton.state.records import WorkerRole
from baton.v1 import prefill_pb2, prefill_pb2_grpc
from baton.worker import messages
from baton.worker.probe import PROBE_TOKENS
from services.decode.pairing import (
    CONNECT_TIMEOUT_S,
    SWEEP_EVERY_S,
    Backoff,
    PrefillWorker,
    prefill_workers,
    quarantined,
)
from services.decode.reservations import Reservations, proves_end

logger = logging.getLogger(__name__)

RECONNECT_TIMEOUT_S = 1.0
"""A pair that failed before gets less time, since a request may be waiting for it."""

FORGET_AFTER_S = 10.0
"""A pair whose worker left the fleet is forgotten when it was not used for this long."""

PEER_UNKNOWN = "PEER_UNKNOWN"
"""What a prefill worker answers that does not know, or no longer, where to write."""


@dataclass(slots=True, eq=False)
class _Pair:
    worker: PrefillWorker
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    is_proven: bool = False
    users: int = 0
    backoff: Backoff = field(default_factory=Backoff)
    used_at_s: float = field(default_factory=time.monotonic)


class Peers:
    """All pairs of one decode worker."""

    def __init__(self, engine: Engine, transport: KvTransport, reservations: Reservations) -> None:
        self._engine = engine
        self._transport = transport
        self._reservations = reservations
        self._pairs: dict[str, _Pair] = {}

    def connected(self) -> list[str]:
        """Returns the ids of the workers whose pair is proven."""
        return sorted(
            pair.worker.worker_id for pair in self._pairs.values() if self._is_usable(pair)
        )

    @asynccontextmanager
    async def using(self, worker: PrefillWorker) -> AsyncIterator[None]:
        """Makes the pair unless it is proven, and keeps it while the block runs.

        Raises the BatonError that prevents the pair; UnavailableError (PEER_QUARANTINED), without
        trying, soon after failures.
        """
        pair = self._pairs.setdefault(worker.incarnation, _Pair(worker))
        pair.users += 1
        try:
            await self._ensure(pair)
            yield
        finally:
            pair.users -= 1
            pair.used_at_s = time.monotonic()

    def distrust(self, worker: PrefillWorker, error: BatonError) -> None:
        """Makes the next use prove the pair again; at once if the worker only forgot it."""
        pair = self._pairs.get(worker.incarnation)
        if pair is None or not pair.is_proven:
            return
        pair.is_proven = False
        if error.reason != PEER_UNKNOWN:
            pair.backoff.book(pair.worker, error)

    async def follow(self, fleet: FleetView) -> None:
        """Makes pairs as workers join, so that no request waits for one, and forgets old ones."""
        generation = -1
        while True:
            live = prefill_workers(fleet)
            await asyncio.gather(*map(self._introduce, live))
            # Decode workers are paired on their first use, since most are never pulled from.
            others = [view.record.incarnation for view in fleet.workers(WorkerRole.DECODE)]
            await self._sweep({worker.incarnation for worker in live} | set(others))
            try:
                async with asyncio.timeout(SWEEP_EVERY_S):
                    generation = await fleet.wait_change(generation)
            except TimeoutError:
                continue

    def _is_usable(self, pair: _Pair) -> bool:
        # The transport forgets a peer by itself when it finds it dead.
        return pair.is_proven and self._transport.is_connected(pair.worker.incarnation)

    async def _introduce(self, worker: PrefillWorker) -> None:
        try:
            async with self.using(worker):
                return
        except BatonError as error:
            logger.debug("pair not made worker=%s: %s", worker.worker_id, error.message)

    async def _ensure(self, pair: _Pair) -> None:
        if self._is_usable(pair):
            return
        if pair.backoff.is_waiting or (pair.backoff.failures and pair.lock.locked()):
            raise quarantined(pair.worker)
        async with pair.lock:
            if self._is_usable(pair):
                return
            if pair.backoff.is_waiting:
                raise quarantined(pair.worker)
            await self._prove(pair)

    async def _prove(self, pair: _Pair) -> None:
        timeout_s = RECONNECT_TIMEOUT_S if pair.backoff.failures else CONNECT_TIMEOUT_S
        pair.is_proven = False
        try:
            await self._connect(pair.worker, timeout_s)
        except OverloadedError:
            raise  # this worker has no block to spare for a probe, which is not the pair's fault
        except BatonError as error:
            pair.backoff.book(pair.worker, error)
            raise
        pair.is_proven = True
        pair.backoff.failures = 0
        logger.info("pair proven worker=%s", pair.worker.worker_id)
        await self._forget_former_lives(pair.worker)

    async def _connect(self, worker: PrefillWorker, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s), open_channel(worker.address) as channel:
                await _wait_ready(channel, worker)
                await self._probe_reserved(channel, worker)
        except TimeoutError:
            raise UnavailableError(
                f"{worker.worker_id} did not connect in {timeout_s:g} s", reason="PEER_TIMEOUT"
            ) from None

    async def _probe_reserved(self, channel: grpc.aio.Channel, worker: PrefillWorker) -> None:
        reservation = self._reservations.reserve(_probe_request())
        self._reservations.expose(reservation)
        may_be_written = True
        try:
            await self._probe(channel, worker, reservation)
            may_be_written = False
        except BatonError as error:
            may_be_written = not proves_end(error)
            raise
        finally:
            if may_be_written:
                self._reservations.quarantine(reservation, worker.incarnation)
            else:
                self._reservations.release(reservation)

    async def _probe(
        self, channel: grpc.aio.Channel, worker: PrefillWorker, reservation: Reservation
    ) -> None:
        destination = reservation.destination
        layout = self._engine.capabilities.kv_layout
        request = prefill_pb2.ConnectPeerRequest(
            agent=self._transport.agent,
            agent_metadata=self._transport.metadata(),
            kv_layout=layout,
            probe_block=destination.block_ids[0],
            probe_id=destination.transfer_id,
        )
        stub = prefill_pb2_grpc.PrefillServiceStub(channel)
        try:
            with self._transport.introducing():
                response = await stub.ConnectPeer(request, timeout=CONNECT_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise _explain(error, worker) from error
        worker.check_agent(response.agent)
        await self._transport.connect(response.agent, response.agent_metadata, layout)
        receipt = messages.receipt(response.probe)
        await self._transport.verify(receipt, PROBE_TOKENS, CONNECT_TIMEOUT_S)

    async def _forget_former_lives(self, worker: PrefillWorker) -> None:
        former = [
            pair
            for pair in self._pairs.values()
            if pair.worker.address == worker.address
            and pair.worker.incarnation != worker.incarnation
        ]
        for pair in former:
            await self._forget(pair)

    async def _sweep(self, live: set[str]) -> None:
        oldest_s = time.monotonic() - FORGET_AFTER_S
        for pair in list(self._pairs.values()):
            if pair.worker.incarnation not in live and pair.used_at_s < oldest_s:
                await self._forget(pair)

    async def _forget(self, pair: _Pair) -> None:
        if pair.users:
            return  # the sweep comes again
        del self._pairs[pair.worker.incarnation]
        try:
            await self._transport.disconnect(pair.worker.incarnation)
        except TransferError as error:
            logger.warning("peer not disconnected worker=%s: %s", pair.worker, error.message)


async def _wait_ready(channel: grpc.aio.Channel, worker: PrefillWorker) -> None:
    """Keeps an unreachable worker from costing a block: nothing is reserved before it answers."""
    state = channel.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.READY:
        if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            raise UnavailableError(
                f"{worker.worker_id} at {worker.address} is unreachable", reason="PEER_UNREACHABLE"
            )
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)


def _probe_request() -> EngineRequest:
    sampling = SamplingParams(max_tokens=1)
    return EngineRequest(f"probe-{secrets.token_hex(8)}", (0,), sampling)


def _explain(error: grpc.aio.AioRpcError, worker: PrefillWorker) -> BatonError:
    found = from_rpc_error(error)
    if found.reason != type(found).default_reason:
        return found
    # Without a reason of its own the status came from gRPC, and the worker may still be writing.
    return UnavailableError(
        f"{worker.worker_id} was lost while connecting: {found.message}", reason="PEER_LOST"
    )
