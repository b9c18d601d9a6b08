"""Pairs of engines that meet in rooms: introduced by the prefill worker, proven by a transfer.

A pair belongs to one rendezvous, which changes whenever the prefill worker's engine starts. It is
proven by a short prompt that goes the whole way, KV included.
"""

import asyncio
import logging
import secrets
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
from baton.v1 import prefill_pb2, prefill_pb2_grpc
from services.decode.pairing import (
    CONNECT_TIMEOUT_S,
    SWEEP_EVERY_S,
    Backoff,
    PrefillWorker,
    prefill_workers,
    quarantined,
)

logger = logging.getLogger(__name__)

PROVE_TIMEOUT_S = 60.0
"""The first transfer of a pair sets its connections up."""

PREPARE_TIMEOUT_S = 90.0
RESTARTING_RETRY_S = 1.0
_PROBE_PROMPT = (1, 2, 3, 4)

Prove = Callable[[EngineRequest, PrefillWorker, str], Awaitable[None]]
"""Sends a request through both legs at a rendezvous. Raises BatonError when it does not arrive."""


@dataclass(slots=True, eq=False)
class _Pair:
    worker: PrefillWorker
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    rendezvous: str = ""
    backoff: Backoff = field(default_factory=Backoff)


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
                await asyncio.gather(*map(self._introduce, prefill_workers(fleet)))
        except TimeoutError:
            logger.warning("pairs not proven in time; requests will wait for them")

    async def run(self, fleet: FleetView) -> None:
        """Proves pairs as workers join, so that no request waits for one; forgets old ones."""
        generation = -1
        while True:
            live = prefill_workers(fleet)
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
        if pair.backoff.is_waiting:
            raise quarantined(pair.worker)
        async with pair.lock:
            if not pair.rendezvous:
                try:
                    pair.rendezvous = await self._make(pair.worker)
                except BatonError as error:
                    _book_failure(pair, error)
                    raise
                pair.backoff.failures = 0
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
        worker.check_agent(response.agent)
        return response.rendezvous


def _concerns_pair(error: BatonError) -> bool:
    """Tells whether the other engine may be another one now, or gone."""
    return isinstance(error, UnavailableError | PreconditionError)


def _book_failure(pair: _Pair, error: BatonError) -> None:
    pair.rendezvous = ""
    if error.reason == RENDEZVOUS_CHANGED:
        return  # it lives, at another place
    if error.reason == "ENGINE_DOWN":
        # One of the two engines is started again, and is nobody to keep away from after that.
        pair.backoff.wait(RESTARTING_RETRY_S)
        return
    pair.backoff.book(pair.worker, error)
