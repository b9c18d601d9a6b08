"""An engine without a model: real pool, real transfers, tokens that follow from the prompt.

A block's KV is one number that follows from all tokens up to its end, so a decode worker that
used KV which never arrived, or somebody else's, fails at once. Events let a test hold it.
"""

import asyncio
import ctypes
import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace

import xxhash

from baton.blocks import blocks_for, root_hash, token_bytes
from baton.engine.admit import send_cached
from baton.engine.base import (
    EngineCapabilities,
    EngineSamples,
    EngineStats,
    KvEvent,
    Prefilled,
    PrefillSample,
    Reservation,
    StepSample,
    TokenEvent,
)
from baton.errors import InvalidRequestError, OverloadedError
from baton.kv.pool import BlockPool, Grant
from baton.kv.segment import Segment
from baton.kv.transfer import KvDestination, KvReceipt, KvTransport, PoolMemory
from baton.requests import EngineRequest, FinishReason
from baton.worker.finish import finish

VOCABULARY = 1000
BLOCK_BYTES = 8


def next_token(tokens: Sequence[int]) -> int:
    """Returns what every fake engine generates after these tokens."""
    return xxhash.xxh3_64_intdigest(token_bytes(tokens)) % VOCABULARY


def generated(prompt: Sequence[int], count: int) -> list[int]:
    """Returns the whole answer to a prompt."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class FakeEngine:
    """Implements `Engine`; computes one prompt at a time.

    `may_prefill` holds every prompt half way, with its first blocks pushed; `may_decode` holds
    every token after the first.
    """

    def __init__(
        self, blocks: int = 64, block_size: int = 4, *, prefills_locally: bool = True
    ) -> None:
        self.may_prefill = asyncio.Event()
        self.may_prefill.set()
        self.may_decode = asyncio.Event()
        self.may_decode.set()
        self.may_send = asyncio.Event()
        self.may_send.set()
        self.asked_to_send = 0
        self.aborted_prefills = 0
        self.device = "fake"
        self.prefill_samples: list[PrefillSample] = []
        self.step_samples: list[StepSample] = []
        self.pool = BlockPool(blocks, block_size, lambda salt: root_hash("fake", salt))
        self._block_size = block_size
        self._segment = Segment(blocks * BLOCK_BYTES)
        self._kv = (ctypes.c_uint64 * blocks).from_buffer(self._segment.buffer)
        self._prefills_locally = prefills_locally
        self._transport: KvTransport | None = None
        self._slot = asyncio.Lock()
        self._ids = itertools.count()
        self._queued = self._prefilling = self._decoding = 0
        self._reservations: dict[str, Reservation] = {}

    @property
    def capabilities(self) -> EngineCapabilities:
        return EngineCapabilities(
            model="fake",
            context_length=4096,
            vocab_size=VOCABULARY,
            block_size=self._block_size,
            kv_bytes_per_token=BLOCK_BYTES // self._block_size,
            kv_layout=f"fake-{self._block_size}",
            kv_blocks=len(self._kv),
            tokenizer_digest="none",
            prefills_locally=self._prefills_locally,
            device=self.device,
        )

    async def start(self, transport: KvTransport) -> None:
        self._transport = transport
        address = ctypes.addressof(self._kv)
        layout = self.capabilities.kv_layout
        memory = PoolMemory(address, BLOCK_BYTES, len(self._kv), layout, segment=self._segment)
        await transport.start(memory)

    async def stop(self) -> None:
        if self._transport is not None:
            await self._transport.stop()

    def match(self, request: EngineRequest) -> int:
        return self.pool.match(request.input_ids, request.cache_salt)

    def reserve(self, request: EngineRequest) -> Reservation:
        assert self._transport is not None
        owner = self._owner(request)
        grant = self._grant(owner, request)
        fresh = grant.block_ids[grant.cached_tokens // self._block_size :]
        destination = self._transport.expect(owner, grant.cached_tokens, fresh)
        self._reservations[owner] = Reservation(request.request_id, destination)
        return self._reservations[owner]

    def release(self, reservation: Reservation) -> None:
        assert self._transport is not None
        owner = reservation.destination.transfer_id
        del self._reservations[owner]
        self._transport.forget(owner)
        self.pool.release(owner)

    def keep(self, reservation: Reservation, input_ids: Sequence[int]) -> None:
        owner = reservation.destination.transfer_id
        del self._reservations[owner]
        self.pool.commit(owner, input_ids)
        self.pool.release(owner)

    async def send_cached(self, request: EngineRequest, destination: KvDestination) -> KvReceipt:
        assert self._transport is not None
        self.asked_to_send += 1
        await self.may_send.wait()
        return await send_cached(self.pool, self._transport, request, destination)

    async def prefill(self, request: EngineRequest, destination: KvDestination) -> Prefilled:
        assert self._transport is not None
        outgoing = self._transport.open(destination)
        skipped = destination.cached_tokens // self._block_size
        has_ended = False
        try:
            owner = self._owner(request)
            async with self._turn():
                with self._computed(owner, request) as (grant, prefilled):
                    self.pool.commit(owner, request.input_ids)
                    blocks = grant.block_ids[skipped:]
                    outgoing.push(blocks[:1], 0)
                    await self.may_prefill.wait()
                    if blocks[1:]:
                        outgoing.push(blocks[1:], 1)
                    receipt = await outgoing.finish(len(request.input_ids))
                    has_ended = True
                    return replace(prefilled, receipt=receipt)
        finally:
            if not has_ended:
                self.aborted_prefills += 1
                await finish(outgoing.abort())

    async def generate(
        self,
        request: EngineRequest,
        reservation: Reservation | None = None,
        prefilled: Prefilled | None = None,
    ) -> AsyncIterator[TokenEvent]:
        if reservation is not None:
            assert prefilled is not None
            owner = reservation.destination.transfer_id
            del self._reservations[owner]
            first = TokenEvent((prefilled.first_token,))
            try:
                self._check_kv(owner, request)
                async for event in self._decode(owner, request, first):
                    yield event
            finally:
                self.pool.release(owner)
            return
        owner = self._owner(request)
        async with AsyncExitStack() as turn:
            await turn.enter_async_context(self._turn())
            with self._computed(owner, request) as (_, prefilled):
                await self.may_prefill.wait()
                await turn.aclose()
                first = TokenEvent((prefilled.first_token,), prefilled=prefilled)
                async for event in self._decode(owner, request, first):
                    yield event

    def stats(self) -> EngineStats:
        counts = self.pool.counts()
        return EngineStats(
            queued_requests=self._queued,
            queued_tokens=0,
            prefilling_requests=self._prefilling,
            decoding_requests=self._decoding,
            kv_blocks_total=counts.total,
            kv_blocks_free=counts.free,
            kv_blocks_cached=counts.cached,
            kv_blocks_owned=counts.owned,
            kv_leases=len(self._reservations),
            busy_share=0.0,
        )

    def take_samples(self) -> EngineSamples:
        taken = EngineSamples(tuple(self.prefill_samples), tuple(self.step_samples))
        self.prefill_samples.clear()
        self.step_samples.clear()
        return taken

    def take_kv_events(self) -> Sequence[KvEvent]:
        return self.pool.take_events()

    def cached_hashes(self) -> Sequence[int]:
        return self.pool.cached_hashes()

    def reserved_blocks(self) -> list[tuple[int, ...]]:
        """Returns the blocks of each reservation that may be written to now."""
        return [reservation.destination.block_ids for reservation in self._reservations.values()]

    def corrupt(self, block: int) -> None:
        """Overwrites a block as a stray write would."""
        self._kv[block] = 0xBAD

    async def _decode(
        self, owner: str, request: EngineRequest, first: TokenEvent
    ) -> AsyncIterator[TokenEvent]:
        self.pool.commit(owner, request.input_ids)
        tokens = [*request.input_ids, *first.token_ids]
        limit = request.sampling.max_tokens
        self._decoding += 1
        try:
            for count in range(1, limit + 1):
                reason = FinishReason.LENGTH if count == limit else None
                event = first if count == 1 else TokenEvent((tokens[-1],))
                yield replace(event, finish_reason=reason)
                await asyncio.sleep(0)
                await self.may_decode.wait()
                assert self.pool.grow(owner, len(tokens)) is not None
                tokens.append(next_token(tokens))
        finally:
            self._decoding -= 1

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Waits for the engine and keeps it while the block runs."""
        self._queued += 1
        try:
            await self._slot.acquire()
        finally:
            self._queued -= 1
        self._prefilling += 1
        try:
            yield
        finally:
            self._prefilling -= 1
            self._slot.release()

    @contextmanager
    def _computed(self, owner: str, request: EngineRequest) -> Iterator[tuple[Grant, Prefilled]]:
        """Computes the prompt's KV and holds it while the block runs."""
        grant = self._grant(owner, request)
        try:
            for index, block in enumerate(grant.block_ids):
                if index < grant.cached_tokens // self._block_size:
                    assert self._kv[block] == self._fingerprint(request, index), "wrong KV cached"
                self._kv[block] = self._fingerprint(request, index)
            token = next_token(request.input_ids)
            yield grant, Prefilled(token, None, None, 0.001, 0.002, grant.cached_tokens)
        finally:
            self.pool.release(owner)

    def _grant(self, owner: str, request: EngineRequest) -> Grant:
        if blocks_for(len(request.input_ids), self._block_size) > len(self._kv):
            raise InvalidRequestError("the prompt never fits", field="input_ids")
        grant = self.pool.reserve(owner, request.input_ids, request.cache_salt)
        if grant is None:
            raise OverloadedError("the KV pool is full", reason="KV_POOL_FULL")
        return grant

    def _fingerprint(self, request: EngineRequest, index: int) -> int:
        covered = request.input_ids[: (index + 1) * self._block_size]
        return xxhash.xxh3_64_intdigest(token_bytes(covered))

    def _check_kv(self, owner: str, request: EngineRequest) -> None:
        prompt_blocks = blocks_for(len(request.input_ids), self._block_size)
        for index, block in enumerate(self.pool.table(owner)[:prompt_blocks]):
            assert self._kv[block] == self._fingerprint(request, index), "wrong KV"

    def _owner(self, request: EngineRequest) -> str:
        return f"{request.request_id}/{next(self._ids)}"
