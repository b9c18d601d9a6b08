"""TorchEngine: the Engine protocol over the engine thread, the block pool and a transport."""

import asyncio
import itertools
import secrets
import time
from array import array
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from baton.engine.admit import (
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
from baton.engine.torch.assembly import StartedEngine, TorchEngineOptions, assemble
from baton.engine.torch.inbox import Inbox, undisturbed
from baton.engine.torch.job import BlockFeed, Job, Order, Phase, stop_rule
from baton.engine.torch.loop import Output
from baton.engine.torch.model import LoadedModel
from baton.errors import (
    BatonError,
    InternalError,
    PreconditionError,
)
from baton.kv.transfer import KvDestination, KvReceipt, KvTransport, OutgoingTransfer
from baton.requests import EngineRequest

_STOP_DEADLINE_S = 15.0


class TorchEngine:
    """Serves one causal LM on this machine. See `baton.engine.base.Engine` for the contract."""

    def __init__(self, options: TorchEngineOptions) -> None:
        self._options = options
        self._started: StartedEngine | None = None
        self._model: LoadedModel | None = None
        self._arrivals = itertools.count()
        self._jobs: set[Job] = set()
        self._prefills: set[asyncio.Future[None]] = set()

    @property
    def capabilities(self) -> EngineCapabilities:
        """Known once `start` returned."""
        return self._up().capabilities

    async def start(self, transport: KvTransport) -> None:
        """Loads the model, allocates and registers the pool, starts the engine thread.

        Started again after a stop, it goes on with the model that it loaded first.
        """
        assert self._started is None
        loop = asyncio.get_running_loop()

        def post(outputs: Sequence[Output]) -> None:
            loop.call_soon_threadsafe(_deliver, outputs)

        started = await asyncio.to_thread(assemble, self._options, transport, post, self._model)
        self._model = started.model
        await transport.start(started.memory)
        started.thread.start()
        self._started = started

    async def stop(self) -> None:
        """Ends all requests, the thread and the transport; again does nothing."""
        started = self._started
        if started is None:
            return
        started.steps.stop()
        await asyncio.to_thread(started.thread.join)
        if self._prefills:
            await asyncio.wait(self._prefills, timeout=_STOP_DEADLINE_S)
        started.reservations.release_all()
        await started.transport.stop()
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
        up.steps.wake()

    def keep(self, reservation: Reservation, input_ids: Sequence[int]) -> None:
        """Ends a reservation whose blocks hold the KV of `input_ids`; they stay cached."""
        up = self._up()
        up.reservations.keep(reservation, input_ids)
        up.steps.wake()

    async def send_cached(self, request: EngineRequest, destination: KvDestination) -> KvReceipt:
        """Pushes cached blocks of the prompt to `destination`."""
        up = self._up()
        self._check(request)
        # A block is committed when its step was submitted; a GPU may still be writing it.
        settle = up.steps.wait_for_writes
        return await send_cached(up.pool, up.transport, request, destination, settle)

    async def prefill(self, request: EngineRequest, destination: KvDestination) -> Prefilled:
        """Computes the prompt and pushes its KV to `destination` chunk by chunk."""
        up = self._up()
        self._check(request)
        size = up.pool.block_size
        check_destination(request, destination, size)
        outgoing = up.transport.open(destination)
        inbox = Inbox()
        job = self._new_job(request, inbox)
        job.feed = BlockFeed(outgoing, destination.cached_tokens // size)
        job.expected_cached = self.match(request)
        self._submit(job)
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ended.add_done_callback(self._prefills.discard)
        self._prefills.add(ended)
        unfinished: OutgoingTransfer | None = outgoing
        try:
            event = await inbox.get()
            if event is None or event.prefilled is None:
                raise InternalError("a prefill ended without its token")
            receipt = await outgoing.finish(len(request.input_ids))
            unfinished = None
            return replace(event.prefilled, receipt=receipt)
        finally:
            ending = asyncio.ensure_future(self._end_prefill(job, inbox, unfinished))
            ending.add_done_callback(lambda _: ended.set_result(None))
            # The answer of one that went well does not wait until its blocks are given back, which
            # takes half a millisecond for a thousand.
            if unfinished is not None:
                await undisturbed(ending)

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
        self._check(request)
        inbox = Inbox()
        job = self._new_job(request, inbox)
        if reservation is None:
            job.expected_cached = self.match(request)
        else:
            self._adopt(job, reservation)
        first = None if prefilled is None else _first_event(job, prefilled)
        if first is not None and first.finish_reason is not None:
            self._free(job)
            yield first
            return
        self._submit(job)
        try:
            if first is not None:
                yield first
            while (event := await inbox.get()) is not None:
                yield event
        finally:
            await undisturbed(self._end_generate(job, inbox))

    def stats(self) -> EngineStats:
        """Returns the figures of this moment."""
        up = self._up()
        counts, host = up.pool.counts(), up.pool.host_counts()
        phases = [job.phase for job in self._jobs]
        return EngineStats(
            queued_requests=phases.count(Phase.WAITING),
            queued_tokens=sum(job.queued_tokens for job in self._jobs),
            prefilling_requests=phases.count(Phase.PREFILLING),
            decoding_requests=phases.count(Phase.DECODING),
            kv_blocks_total=counts.total,
            kv_blocks_free=counts.free,
            kv_blocks_cached=counts.cached,
            kv_blocks_owned=counts.owned,
            kv_leases=len(up.reservations),
            busy_share=up.steps.busy.share(),
            kv_host_total=host.total,
            kv_host_used=host.used,
            preemptions=up.steps.preemptions,
            queued_pairs=sum(job.queued_pairs for job in self._jobs),
        )

    def take_samples(self) -> EngineSamples:
        """Returns what steps and prompts took since the last call."""
        return self._up().steps.samples.take()

    def take_kv_events(self) -> Sequence[KvEvent]:
        """Returns what changed in the prefix cache since the last call, in order."""
        return self._up().pool.take_events()

    def cached_hashes(self) -> Sequence[int]:
        """Returns the hashes of all reusable blocks now."""
        return self._up().pool.cached_hashes()

    def audit(self) -> None:
        """Asserts the pool's accounting block by block. For tests and after faults."""
        self._up().pool.audit()

    def _up(self) -> StartedEngine:
        if self._started is None:
            raise PreconditionError("the engine is not running", reason="ENGINE_DOWN")
        return self._started

    def _check(self, request: EngineRequest) -> None:
        check_request(request, self._up().capabilities)

    def _new_job(self, request: EngineRequest, inbox: Inbox) -> Job:
        up = self._up()
        prompt, seed = request.input_ids, request.sampling.seed
        arrival = next(self._arrivals)
        room = longest_sequence(up.capabilities) - len(prompt)
        return Job(
            request=request,
            owner=f"{request.request_id}/{arrival}",
            order=Order(-request.priority, arrival),
            seed=secrets.randbits(63) if seed is None else seed,
            stop_rule=stop_rule(request, up.model.eos_ids, room, up.model.tokenizer),
            submitted_s=time.monotonic(),
            on_event=inbox.put,
            tokens=list(prompt),
        )

    def _adopt(self, job: Job, reservation: Reservation) -> None:
        """Makes a reservation's blocks the job's own."""
        job.owner = self._up().reservations.take_over(reservation)
        job.blocks = array("q", self._up().pool.table(job.owner))
        job.computed = job.cached_tokens = reservation.destination.cached_tokens
        job.holds_lease = True

    def _submit(self, job: Job) -> None:
        try:
            self._up().steps.submit(job)
        except BatonError:
            self._free(job)
            raise
        self._jobs.add(job)

    def _free(self, job: Job) -> None:
        """Releases what a job holds that the engine thread does not know or gave back."""
        if job.holds_lease:
            up = self._up()
            up.pool.commit(job.owner, job.tokens[: job.computed])
            up.pool.release(job.owner)
            job.holds_lease = False
            up.steps.wake()

    async def _end_generate(self, job: Job, inbox: Inbox) -> None:
        if not inbox.ended.is_set():
            self._up().steps.abort(job)
            await inbox.ended.wait()
        self._jobs.discard(job)

    async def _end_prefill(
        self, job: Job, inbox: Inbox, unfinished: OutgoingTransfer | None
    ) -> None:
        await self._end_generate(job, inbox)
        try:
            if unfinished is not None:
                await unfinished.abort()
        finally:
            # A write that did not stop only reads these; its error tells the reader to wait.
            self._free(job)


def _deliver(outputs: Sequence[Output]) -> None:
    for job, item in outputs:
        job.on_event(item)


def _first_event(job: Job, prefilled: Prefilled) -> TokenEvent:
    """Continues the job behind the prefill worker's token and returns that token's event."""
    job.computed = len(job.tokens)
    job.is_prefilled = True
    job.tokens.append(prefilled.first_token)
    logprobs: tuple[float, ...] = ()
    if job.request.sampling.logprobs and prefilled.logprob is not None:
        logprobs = (prefilled.logprob,)
    finish = job.stop_rule.finish_after(prefilled.first_token)
    return TokenEvent((prefilled.first_token,), logprobs, finish)
