"""One attempt to have a prompt computed by one prefill worker, straight into reserved blocks."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from baton.engine.base import Prefilled, Reservation
from baton.errors import BatonError, DeadlineError, KvMismatchError, TransferError
from baton.kv.transfer import KvReceipt, KvTransport
from baton.requests import EngineRequest
from baton.rpc.link import LinkPool
from baton.rpc.links import PREFILL_LINK
from baton.v1 import prefill_link_pb2
from baton.worker import messages
from services.decode.attempts import AttemptFailed
from services.decode.job import Job
from services.decode.pairing import PrefillWorker
from services.decode.peers import PEER_UNKNOWN, Peers
from services.decode.prefill_result import result, to_prefilled
from services.decode.reservations import Reservations, proves_end

PREFILL_TIMEOUT_S = 120.0
"""How long a prefill worker may take for a request that has no deadline of its own."""

VERIFY_TIMEOUT_S = 5.0


@dataclass(slots=True)
class RemotePrefill:
    """A prompt whose verified KV waits in `reservation`.

    `round_trip_s` is from asking the worker to the verified receipt. Whoever lets the engine
    generate from the reservation sets `is_taken`.
    """

    reservation: Reservation
    prefilled: Prefilled
    round_trip_s: float
    is_taken: bool = False


class RemotePrefiller:
    """Asks prefill workers over links, one per worker."""

    def __init__(self, transport: KvTransport, peers: Peers, reservations: Reservations) -> None:
        self._transport = transport
        self._peers = peers
        self._reservations = reservations
        self._links = LinkPool(PREFILL_LINK)

    async def close_idle(self) -> None:
        """Closes links that nobody used for a while."""
        await self._links.close_idle()

    async def close(self) -> None:
        """Closes all links."""
        await self._links.close()

    @asynccontextmanager
    async def prefill(self, job: Job, worker: PrefillWorker) -> AsyncIterator[RemotePrefill]:
        """Has the prompt computed by `worker`; leaving frees the blocks unless they were taken.

        Raises AttemptFailed when the worker did not deliver, and what `Engine.reserve` raises
        when this worker has no room.
        """
        try:
            delivered = await self._prefill(job, worker)
        except AttemptFailed as failed:
            if failed.reason != PEER_UNKNOWN:
                raise
            # The worker dropped this pair, as it does when a link was idle: introduce us again.
            delivered = await self._prefill(job, worker)
        try:
            yield delivered
        finally:
            if delivered.is_taken:
                self._reservations.taken(delivered.reservation)
            else:
                self._reservations.release(delivered.reservation)

    async def fetch(self, job: Job, worker: PrefillWorker, tokens: int) -> KvReceipt:
        """Moves the KV of the prompt's first `tokens` tokens here from the cache of `worker`.

        `tokens` fill whole blocks and are less than the prompt. What arrived is cached here
        afterwards. Raises AttemptFailed and what `Engine.reserve` raises.
        """
        ids = job.request.input_ids
        held = replace(job.request, input_ids=ids[:tokens])
        # A cache never answers for the last token that it is asked about.
        asked = replace(job.request, input_ids=ids[: tokens + 1])
        async with self._exposed(held, worker) as reservation:
            start = messages.prefill_start(asked, reservation.destination, cached_only=True)
            prefilled = await self._ask(job, start, reservation, worker, tokens)
        self._reservations.keep(reservation, held.input_ids)
        assert prefilled.receipt is not None
        return prefilled.receipt

    async def _prefill(self, job: Job, worker: PrefillWorker) -> RemotePrefill:
        async with self._exposed(job.request, worker) as reservation:
            asked_s = time.monotonic()
            start = messages.prefill_start(job.request, reservation.destination)
            tokens = len(job.request.input_ids)
            prefilled = await self._ask(job, start, reservation, worker, tokens)
            return RemotePrefill(reservation, prefilled, time.monotonic() - asked_s)

    @asynccontextmanager
    async def _exposed(
        self, request: EngineRequest, worker: PrefillWorker
    ) -> AsyncIterator[Reservation]:
        """Reserves blocks for a request and has a proven pair; `_ask` answers for what follows."""
        reservation = self._reservations.reserve(request)
        is_exposed = False
        try:
            async with self._peers.using(worker):
                self._reservations.expose(reservation)
                is_exposed = True
                yield reservation
        except BatonError as error:
            raise AttemptFailed(worker.worker_id, error) from error
        finally:
            if not is_exposed:
                self._reservations.release(reservation)

    async def _ask(
        self,
        job: Job,
        start: prefill_link_pb2.PrefillStart,
        reservation: Reservation,
        worker: PrefillWorker,
        tokens: int,
    ) -> Prefilled:
        """Returns the proven result; whatever else happens, takes the reservation back."""
        left_s = job.time_left_s()
        call = self._links.link(worker.address).open(
            prefill_link_pb2.PrefillCommand(start=start),
            timeout_s=PREFILL_TIMEOUT_S if left_s is None else left_s,
            traceparent=job.traceparent,
        )
        has_ended = False
        try:
            try:
                done = await result(call)
            except BatonError as error:
                # A deadline can pass here before the worker knows; all else is its last word.
                has_ended = proves_end(error) and not isinstance(error, DeadlineError)
                raise
            prefilled = to_prefilled(done)
            assert prefilled.receipt is not None
            await self._transport.verify(prefilled.receipt, tokens, VERIFY_TIMEOUT_S)
        except BaseException as error:
            if has_ended:
                self._reservations.release(reservation)
            else:
                self._reservations.reclaim(reservation, call, worker.incarnation)
            if isinstance(error, BatonError) and _concerns_pair(error):
                self._peers.distrust(worker, error)
            raise
        return prefilled


def _concerns_pair(error: BatonError) -> bool:
    """Tells whether the way between the two workers failed, and not the request or its turn."""
    is_transfer = isinstance(error, TransferError | KvMismatchError)
    return is_transfer or error.reason == PEER_UNKNOWN or not proves_end(error)
