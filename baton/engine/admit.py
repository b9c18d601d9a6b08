"""What every engine with a block pool does before it computes: check, reserve, take over."""

import asyncio
import itertools
from collections.abc import Callable, Sequence

from baton.blocks import all_below, blocks_for
from baton.engine.base import EngineCapabilities, Reservation
from baton.errors import BatonError, InvalidRequestError, OverloadedError, PreconditionError
from baton.kv.pool import BlockPool
from baton.kv.transfer import KvDestination, KvReceipt, KvTransport, OutgoingTransfer
from baton.requests import EngineRequest
from baton.worker.finish import finish


def longest_sequence(capabilities: EngineCapabilities) -> int:
    """Returns how many tokens, prompt and answer together, a sequence can have."""
    return min(capabilities.context_length, capabilities.kv_blocks * capabilities.block_size)


def check_request(request: EngineRequest, capabilities: EngineCapabilities) -> None:
    """Raises InvalidRequestError for what an engine can never serve."""
    check_length(request, capabilities)
    if not all_below(request.input_ids, capabilities.vocab_size):
        raise InvalidRequestError(
            f"token ids must be below {capabilities.vocab_size}",
            reason="TOKEN_RANGE",
            field="input_ids",
        )


def check_length(request: EngineRequest, capabilities: EngineCapabilities) -> None:
    """Raises InvalidRequestError for a prompt that no sequence of the engine can hold."""
    tokens, limit = len(request.input_ids), longest_sequence(capabilities)
    if not 0 < tokens < limit:
        raise InvalidRequestError(
            f"the prompt has {tokens} tokens; between 1 and {limit - 1} can be served",
            reason="PROMPT_LENGTH",
            field="input_ids",
        )


def check_destination(request: EngineRequest, destination: KvDestination, block_size: int) -> None:
    """Raises PreconditionError when the destination is not for this prompt."""
    prompt = len(request.input_ids)
    skipped, rest = divmod(destination.cached_tokens, block_size)
    if rest or skipped + len(destination.block_ids) != blocks_for(prompt, block_size):
        raise PreconditionError(
            f"transfer {destination.transfer_id}: {len(destination.block_ids)} blocks behind "
            f"{destination.cached_tokens} cached tokens do not hold a prompt of {prompt}",
            reason="DESTINATION_MISMATCH",
        )


async def send_cached(
    pool: BlockPool,
    transport: KvTransport,
    request: EngineRequest,
    destination: KvDestination,
    settle: Callable[[], None] | None = None,
) -> KvReceipt:
    """See `Engine.send_cached`. The blocks stay pinned until nothing reads them any more.

    `settle` blocks until what is cached is in memory, for devices that compute behind one's back.
    """
    owner = f"sending/{destination.transfer_id}"
    outgoing: OutgoingTransfer | None = transport.open(destination)
    assert outgoing is not None
    # The one block beyond what is cached is the price of bringing blocks back from host memory.
    grant = pool.reserve(owner, request.input_ids, request.cache_salt)
    if grant is None:
        raise OverloadedError("the KV pool is full", reason="KV_POOL_FULL")
    try:
        if settle is not None:
            await asyncio.to_thread(settle)
        first = destination.cached_tokens // pool.block_size
        cached = grant.block_ids[: grant.cached_tokens // pool.block_size]
        sources = cached[first : first + len(destination.block_ids)]
        if len(sources) != len(destination.block_ids):
            raise PreconditionError(
                f"only {grant.cached_tokens} tokens of {request.request_id} are cached here",
                reason="PREFIX_GONE",
            )
        outgoing.push(sources, 0)
        receipt = await outgoing.finish((first + len(sources)) * pool.block_size)
        outgoing = None
        return receipt
    finally:
        try:
            if outgoing is not None:
                await finish(outgoing.abort())
        finally:
            pool.release(owner)


class ReservationBook:
    """The live reservations of one engine, each an owner in its pool."""

    def __init__(self, pool: BlockPool, transport: KvTransport) -> None:
        self._pool = pool
        self._transport = transport
        self._live: dict[str, Reservation] = {}
        self._numbers = itertools.count()

    def __len__(self) -> int:
        """Returns how many reservations nobody took over or released yet."""
        return len(self._live)

    def reserve(self, request: EngineRequest) -> Reservation:
        """Pins the cached prefix and blocks for the rest of the prompt and one more token.

        Raises OverloadedError (KV_POOL_FULL) when the pool has no room now.
        """
        number = next(self._numbers)
        transfer_id = f"{self._transport.agent}/{request.request_id}/{number}"
        grant = self._pool.reserve(transfer_id, request.input_ids, request.cache_salt)
        if grant is None or self._pool.grow(transfer_id, len(request.input_ids) + 1) is None:
            if grant is not None:
                self._pool.release(transfer_id)
            raise OverloadedError("the KV pool is full", reason="KV_POOL_FULL")
        fresh = grant.block_ids[grant.cached_tokens // self._pool.block_size :]
        try:
            destination = self._transport.expect(transfer_id, grant.cached_tokens, fresh)
        except BatonError:
            self._pool.release(transfer_id)
            raise
        reservation = Reservation(request.request_id, destination)
        self._live[transfer_id] = reservation
        return reservation

    def release(self, reservation: Reservation) -> None:
        """Frees a reservation that nobody took over."""
        transfer_id = self.take_over(reservation)
        self._transport.forget(transfer_id)
        self._pool.release(transfer_id)

    def keep(self, reservation: Reservation, input_ids: Sequence[int]) -> None:
        """Ends a reservation and caches the blocks of `input_ids`, whose KV is in them."""
        transfer_id = self.take_over(reservation)
        self._pool.commit(transfer_id, input_ids)
        self._pool.release(transfer_id)

    def release_all(self) -> None:
        """Frees every live reservation."""
        for reservation in list(self._live.values()):
            self.release(reservation)

    def take_over(self, reservation: Reservation) -> str:
        """Returns the owner of the blocks, which now are the caller's to release.

        Raises PreconditionError (RESERVATION_UNKNOWN) when the reservation is over.
        """
        transfer_id = reservation.destination.transfer_id
        if self._live.pop(transfer_id, None) is None:
            raise PreconditionError(
                f"reservation {transfer_id} is over", reason="RESERVATION_UNKNOWN"
            )
        return transfer_id
