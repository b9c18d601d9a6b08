"""Pairs of engines that meet in rooms: introduced by the prefill worker, proven by a transfer.

A pair belongs to one rendezvous, which changes whenever the prefill worker's engine starts. It is
proven by a prompt of one token that goes the whole way, KV included; one that cannot be proven is
left alone for a time that doubles with each failure.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc

from baton.engine.rooms import RENDEZVOUS_CHANGED, RoomEngine
from baton.errors import BatonError, PreconditionError, UnavailableError
from baton.requests import EngineRequest, SamplingParams
from baton.rpc.channels import open_channel
from baton.rpc.status import from_rpc_error
from baton.state.fleet import FleetView
from baton.state.records import WorkerRole
from baton.v1 import prefill_pb2, prefill_pb2_grpc
from services.decode.peers import PrefillWorker

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
PROVE_TIMEOUT_S = 60.0
"""The first transfer of a pair sets its connections up."""

PREPARE_TIMEOUT_S = 90.0
BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
RESTARTING_RETRY_S = 1.0
SWEEP_EVERY_S = 1.0
_PROBE_PROMPT = (1, 2, 3, 4)

Prove = Callable[[EngineRequest, PrefillWorker, str], Awaitable[None]]
"""Sends a request through both legs at a rendezvous. Raises BatonError when it does not arrive."""


@dataclass(slots=True, eq=False)
class _Pair:
    worker: PrefillWorker
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    rendezvous: str = ""
    failures: int = 0
    retry_at_s: float = 0.0


class RoomPairs:
    """All pairs of one decode worker. `prove` is set by who owns both legs."""

    def __init__(self, engine: RoomEngine, agent: str) -> None:
        self._engine = engine
        self._agent = agent
        self._pairs: dict[str, _Pair] = {}
        self.prove: Prove | None = None

    def connected(self) -> list[str]:
        """Returns the ids of the prefill workers whose pair is proven."""
        return sorted(pair.worker.worker_id for pair in self._pairs.values() if pair.rendezvous)

    @asynccontextmanager
    async def using(self, worker: PrefillWorker) -> AsyncIterator[str]:
        """Yields where to meet, after proving the pair if that was not done.

        Raises the BatonError that prevents the pair. An error that leaves the block and concerns
        the pair makes the next use prove it again.
        """
        pair = self._pairs.setdefault(worker.incarnation, _Pair(worker))
        rendezvous = pair.rendezvous or await self._ensure(pair)
        try:
            yield rendezvous
        except BatonError as error:
            if _concerns_pair(error) and pair.rendezvous == rendezvous:
                _book_failure(pair, error)
            raise

    async def prepare(self, fleet: FleetView) -> None:
        """Proves the pairs with the workers that are there now; no failure is final."""
        try:
            async with asyncio.timeout(PREPARE_TIMEOUT_S):
                await asyncio.gather(*map(self._introduce, _prefill_workers(fleet)))
        except TimeoutError:
            logger.warning("pairs not proven in time; requests will wait for them")

    async def run(self, fleet: FleetView) -> None:
        """Proves pairs as workers join, so that no request waits for one; forgets old ones."""
        generation = -1
        while True:
            live = _prefill_workers(fleet)
            for gone in self._pairs.keys() - {worker.incarnation for worker in live}:
                if fleet.is_fresh:
                    del self._pairs[gone]
            await asyncio.gather(*map(self._introduce, live))
            try:
                async with asyncio.timeout(SWEEP_EVERY_S):
                    generation = await fleet.wait_change(generation)
            except TimeoutError:
                continue

    async def _introduce(self, worker: PrefillWorker) -> None:
        try:
            async with self.using(worker):
                return
        except BatonError as error:
            logger.debug("pair not made worker=%s: %s", worker.worker_id, error.message)

    async def _ensure(self, pair: _Pair) -> str:
        if time.monotonic() < pair.retry_at_s:
            raise UnavailableError(
                f"the pair with {pair.worker.worker_id} failed and is tried again later",
                reason="PEER_QUARANTINED",
            )
        async with pair.lock:
            if not pair.rendezvous:
                try:
                    pair.rendezvous = await self._make(pair.worker)
                except BatonError as error:
                    _book_failure(pair, error)
                    raise
                pair.failures = 0
                logger.info("pair proven worker=%s", pair.worker.worker_id)
            return pair.rendezvous

    async def _make(self, worker: PrefillWorker) -> str:
        rendezvous = await self._ask(worker)
        sampling = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)
        request = EngineRequest(f"probe-{secrets.token_hex(8)}", _PROBE_PROMPT, sampling)
        assert self.prove is not None
        try:
            async with asyncio.timeout(PROVE_TIMEOUT_S):
                await self.prove(request, worker, rendezvous)
        except TimeoutError:
            raise UnavailableError(
                f"no KV came from {worker.worker_id} in {PROVE_TIMEOUT_S:g} s",
                reason="PEER_TIMEOUT",
            ) from None
        return rendezvous

    async def _ask(self, worker: PrefillWorker) -> str:
        layout = self._engine.capabilities.kv_layout
        request = prefill_pb2.ConnectPeerRequest(agent=self._agent, kv_layout=layout)
        async with open_channel(worker.address) as channel:
            try:
                response = await prefill_pb2_grpc.PrefillServiceStub(channel).ConnectPeer(
                    request, timeout=CONNECT_TIMEOUT_S
                )
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from error
        if response.agent != worker.incarnation:
            raise UnavailableError(
                f"{worker.address} is now {response.agent}, not {worker.incarnation}",
                reason="INCARNATION_CHANGED",
            )
        return response.rendezvous


def _prefill_workers(fleet: FleetView) -> list[PrefillWorker]:
    return [
        PrefillWorker(view.record.worker_id, view.record.incarnation, view.record.address)
        for view in fleet.workers(WorkerRole.PREFILL)
    ]


def _concerns_pair(error: BatonError) -> bool:
    """Tells whether the other engine may be another one now, or gone."""
    return isinstance(error, UnavailableError | PreconditionError)


def _book_failure(pair: _Pair, error: BatonError) -> None:
    pair.rendezvous = ""
    if error.reason == RENDEZVOUS_CHANGED:
        return  # it lives, at another place
    if error.reason == "ENGINE_DOWN":
        # One of the two engines is started again, and is nobody to keep away from after that.
        pair.retry_at_s = time.monotonic() + RESTARTING_RETRY_S
        return
    pair.failures += 1
    backoff_s = min(MAX_BACKOFF_S, BACKOFF_S * 2 ** (pair.failures - 1))
    pair.retry_at_s = time.monotonic() + backoff_s
    logger.warning(
        "pair failed worker=%s reason=%s again_in_s=%g: %s",
        pair.worker.worker_id,
        error.reason,
        backoff_s,
        error.message,
    )
