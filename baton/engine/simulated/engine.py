"""SimulatedEngine: the Engine protocol without a model, on the event loop."""

import itertools
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from baton.blocks import root_hash
from baton.engine.admit import (
    ReservationBook,
    check_destination,
    check_request,
    longest_sequence,
    send_cached,
)
from baton.engine.base import (
    EngineCapabilities,
    EngineSamples,
    EngineStats,
    KvEvent,
    Prefilled,
    Reservation,
    TokenEvent,
)
from baton.engine.simulated.batch import Batch
from baton.engine.simulated.job import Feed, Job, Order
from baton.engine.simulated.spec import SimulatedOptions
from baton.engine.simulated.steps import Steps
from baton.engine.simulated.tokens import TokenSource
from baton.errors import (
    PreconditionError,
    StartupError,
    TransferError,
    UnavailableError,
)
from baton.kv.pool import BlockPool
from baton.kv.transfer import (
    KvDestination,
    KvReceipt,
    KvTransport,
    OutgoingTransfer,
    PoolMemory,
)
from baton.requests import EngineRequest
from baton.worker.finish import finish

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Started:
    """What exists from `start` to `stop`."""

    pool: BlockPool
    steps: Steps
    transport: KvTransport
    capabilities: EngineCapabilities
    reservations: ReservationBook


class SimulatedEngine:
    """Serves one outline of a model. See `baton.engine.base.Engine` for the contract.

    Time comes from the cost model and tokens from the prompt's hash (tokens.py); blocks, prefix
    cache, events, leases, reservations and transfers are the real ones. Unlike the embedded
    engine it does not look for stop strings, which the router does anyway.
    """

    def __init__(self, options: SimulatedOptions) -> None:
        self._options = options
        self._started: _Started | None = None
        self._arrivals = itertools.count()

    @property
    def capabilities(self) -> EngineCapabilities:
        """Known once `start` returned."""
        return self._up().capabilities

    async def start(self, transport: KvTransport) -> None:
        """Makes the pool and starts the transport on it; nothing is allocated."""
        assert self._started is None
        options, spec = self._options, self._options.spec
        if options.kv_blocks < 1:
            raise StartupError(
                f"{options.kv_memory_bytes} bytes of KV memory hold no block of "
                f"{options.block_bytes}; raise cache.kv_memory_mib"
            )
        layout = f"simulated/{spec.kv_bytes_per_token}/{options.block_size}"
        await transport.start(PoolMemory(0, options.block_bytes, options.kv_blocks, layout))
        pool = BlockPool(
            options.kv_blocks,
            options.block_size,
            partial(root_hash, spec.model),
            reuse_prefix=options.reuse_prefix,
        )
        batch = Batch(
            pool,
            options.costs,
            token_budget=options.token_budget,
            max_running=options.max_running,
        )
        capabilities = EngineCapabilities(
            model=spec.model,
            context_length=spec.context_length,
            vocab_size=spec.vocab_size,
            block_size=options.block_size,
            kv_bytes_per_token=spec.kv_bytes_per_token,
            kv_layout=layout,
            kv_blocks=options.kv_blocks,
            tokenizer_digest=spec.tokenizer_digest,
            device="simulated",
        )
        self._started = _Started(
            pool,
            Steps(batch, options.block_size),
            transport,
            capabilities,
            ReservationBook(pool, transport),
        )

    async def stop(self) -> None:
        """Ends all requests and the transport; again does nothing."""
        up = self._started
        if up is None:
            return
        up.steps.stop(UnavailableError("the engine ended", reason="ENGINE_STOPPED"))
        up.reservations.release_all()
        await up.transport.stop()
        self._started = None

    def match(self, request: EngineRequest) -> int:
        """Returns how many prompt tokens the cache holds now."""
        return self._up().pool.match(request.input_ids, request.cache_salt)

    def reserve(self, request: EngineRequest) -> Reservation:
        """Pins the cached prefix and blocks for the rest of the prompt and one more token."""
        self._check(request)
        return self._up().reservations.reserve(request)

    def release(self, reservation: Reservation) -> None:
        """Frees a reservation that `generate` did not take over."""
        up = self._up()
        up.reservations.release(reservation)
        up.steps.kick()

    def keep(self, reservation: Reservation, input_ids: Sequence[int]) -> None:
        """Ends a reservation whose blocks hold the KV of `input_ids`; they stay cached."""
        up = self._up()
        up.reservations.keep(reservation, input_ids)
        up.steps.kick()

    async def send_cached(self, request: EngineRequest, destination: KvDestination) -> KvReceipt:
        """Pushes cached blocks of the prompt to `destination`."""
        up = self._up()
        self._check(request)
        return await send_cached(up.pool, up.transport, request, destination)

    async def prefill(self, request: EngineRequest, destination: KvDestination) -> Prefilled:
        """Computes the prompt and pushes its KV to `destination` chunk by chunk."""
        up = self._up()
        self._check(request)
        check_destination(request, destination, up.pool.block_size)
        outgoing = up.transport.open(destination)
        job = self._new_job(request)
        job.feed = Feed(outgoing, destination.cached_tokens // up.pool.block_size)
        has_ended = False
        try:
            self._submit(job)
            event = await job.inbox.get()
            assert event.prefilled is not None
            receipt = await outgoing.finish(len(request.input_ids))
            has_ended = True
            return replace(event.prefilled, receipt=receipt)
        finally:
            up.steps.batch.remove(job)
            try:
                if not has_ended:
                    await finish(_abort(outgoing))
            finally:
                up.steps.abort(job)

    async def generate(
        self,
        request: EngineRequest,
        reservation: Reservation | None = None,
        prefilled: Prefilled | None = None,
    ) -> AsyncIterator[TokenEvent]:
        """Streams tokens until a finish reason. Closing the iterator aborts and frees.

        A reservation is taken over by the first step of the iteration. With a reservation alone
        its blocks are computed here, as if there were none.
        """
        up = self._up()
        self._check(request)
        job = self._new_job(request)
        if reservation is not None:
            self._adopt(job, reservation)
        try:
            event = None if prefilled is None else _first_event(job, prefilled)
            if event is not None:
                yield event
                if event.finish_reason is not None:
                    return
            self._submit(job)
            while event is None or event.finish_reason is None:
                event = await job.inbox.get()
                yield event
        finally:
            up.steps.abort(job)

    def stats(self) -> EngineStats:
        """Returns the figures of this moment."""
        up = self._up()
        counts = up.pool.counts()
        batch = up.steps.batch
        queued = [*batch.waiting, *batch.prefilling]
        return EngineStats(
            queued_requests=len(batch.waiting),
            queued_tokens=sum(job.queued_tokens for job in queued),
            prefilling_requests=len(batch.prefilling),
            decoding_requests=len(batch.decoding),
            kv_blocks_total=counts.total,
            kv_blocks_free=counts.free,
            kv_blocks_cached=counts.cached,
            kv_blocks_owned=counts.owned,
            kv_leases=len(up.reservations),
            busy_share=up.steps.busy.read(time.monotonic()),
            queued_pairs=sum(job.queued_pairs for job in queued),
        )

    def take_samples(self) -> EngineSamples:
        """Returns what steps took since the last call, by the cost model itself."""
        return self._up().steps.take_samples()

    def take_kv_events(self) -> Sequence[KvEvent]:
        """Returns what changed in the prefix cache since the last call, in order."""
        return self._up().pool.take_events()

    def cached_hashes(self) -> Sequence[int]:
        """Returns the hashes of all reusable blocks now."""
        return self._up().pool.cached_hashes()

    @property
    def preemptions(self) -> int:
        """How often a running request gave its blocks back to be computed again."""
        return self._up().steps.batch.preemptions

    def audit(self) -> None:
        """Asserts the pool's accounting block by block. For tests and after faults."""
        self._up().pool.audit()

    def _up(self) -> _Started:
        if self._started is None:
            raise PreconditionError("the engine is not running", reason="ENGINE_DOWN")
        return self._started

    def _check(self, request: EngineRequest) -> None:
        check_request(request, self._up().capabilities)

    def _new_job(self, request: EngineRequest) -> Job:
        spec, ids, sampling = self._options.spec, request.input_ids, request.sampling
        prompt = ids[: len(ids) - request.resumed_tokens]
        stop_ids = frozenset(sampling.stop_token_ids)
        arrival = next(self._arrivals)
        return Job(
            request=request,
            owner=f"{request.request_id}/{arrival}",
            order=Order(-request.priority, arrival),
            source=TokenSource(prompt, spec.vocab_size, spec.eos_ids),
            answered=request.resumed_tokens,
            left=min(longest_sequence(self._up().capabilities) - len(ids), sampling.max_tokens),
            stop_ids=stop_ids if sampling.ignore_eos else stop_ids | spec.eos_ids,
            submitted_s=time.monotonic(),
            tokens=list(ids),
        )

    def _adopt(self, job: Job, reservation: Reservation) -> None:
        """Makes a reservation's blocks the job's own."""
        job.owner = self._up().reservations.take_over(reservation)
        job.blocks = list(self._up().pool.table(job.owner))
        job.computed = job.cached_tokens = reservation.destination.cached_tokens
        job.holds_lease = True

    def _submit(self, job: Job) -> None:
        up = self._up()
        if not up.steps.is_idle and not job.is_prefilled:
            # It will wait for a step at least, and be counted as waiting meanwhile.
            job.expected_cached = self.match(job.request)
        up.steps.submit(job)


def _first_event(job: Job, prefilled: Prefilled) -> TokenEvent:
    """Continues the job behind the prefill worker's token and returns that token's event."""
    job.computed = len(job.tokens)
    job.is_prefilled = True
    job.tokens.append(prefilled.first_token)
    job.answered += 1
    job.left -= 1
    logprobs: tuple[float, ...] = ()
    if job.request.sampling.logprobs and prefilled.logprob is not None:
        logprobs = (prefilled.logprob,)
    return TokenEvent((prefilled.first_token,), logprobs, job.finish_after(prefilled.first_token))


async def _abort(outgoing: OutgoingTransfer) -> None:
    try:
        await outgoing.abort()
    except TransferError as error:
        # Its reader trusts no receipt of it, and here there is nothing to overwrite.
        logger.warning("transfer did not stop: %s", error)
