"""SglangEngine: the Engine protocol on an SGLang engine in a process of its own."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from baton.blocks import chained_hashes, root_hash
from baton.engine.admit import check_request
from baton.engine.base import (
    EngineCapabilities,
    EngineSamples,
    EngineStats,
    KvEvent,
    Prefilled,
    Reservation,
    TokenEvent,
)
from baton.engine.rooms import RENDEZVOUS_CHANGED, Room
from baton.engine.sglang import frames
from baton.engine.sglang.load import engine_stats
from baton.engine.sglang.options import (
    AGGREGATED,
    PREFILL,
    Places,
    SglangOptions,
    engine_arguments,
)
from baton.engine.sglang.outcome import finish_reason, stage_times
from baton.engine.sglang.process import EngineProcess
from baton.engine.sglang.rehash import CacheMirror
from baton.engine.sglang.samples import Samples
from baton.engine.sglang.sampling import sampling_arguments
from baton.engine.sglang.start import describe, new_places
from baton.engine.sglang.versions import check_version
from baton.engine.sglang.wire import read_event
from baton.errors import PreconditionError, StartupError, UnavailableError
from baton.kv.transfer import KvDestination, KvReceipt, KvTransport
from baton.requests import EngineRequest

logger = logging.getLogger(__name__)

MAX_RESTARTS = 3
"""Failed starts in a row after which a worker gives up."""

RESTART_BACKOFF_S = 1.0
WARM_UP_TOKENS = 4
SGLANG_FAKE_HOST = "2.2.2.2"
"""SGLang's own name for a peer that moves nothing; its health check uses it too."""


class SglangEngine:
    """Serves one model with one SGLang engine; see `baton.engine.rooms.RoomEngine`."""

    def __init__(self, options: SglangOptions) -> None:
        self._options = options
        self._capabilities: EngineCapabilities | None = None
        self._process: EngineProcess | None = None
        self._rendezvous = ""
        name = Path(options.model_dir).name
        self._mirror = CacheMirror(options.block_size, partial(root_hash, name))
        self._changes: list[KvEvent] = []
        self._samples = Samples(options.role)
        self._scratch: TemporaryDirectory[str] | None = None
        self.restarts = 0

    @property
    def capabilities(self) -> EngineCapabilities:
        """Known once `start` returned; the same after a restart."""
        if self._capabilities is None:
            raise PreconditionError("the engine is not running", reason="ENGINE_DOWN")
        return self._capabilities

    @property
    def rendezvous(self) -> str:
        """host:port where legs meet, of a prefill engine; another one after each start."""
        return self._rendezvous

    @property
    def mirror(self) -> CacheMirror:
        """What is known of the engine's prefix cache."""
        return self._mirror

    async def start(self, transport: KvTransport) -> None:
        """Checks the release, starts the process and warms it up; again does nothing."""
        check_version()
        if self._process is None:
            await self._launch()

    @property
    def is_follower(self) -> bool:
        """Tells whether another machine's engine serves and this one only computes for it."""
        return self._options.node_rank > 0

    async def follow(self, stop: asyncio.Event) -> None:
        """Computes for the first machine's engine until `stop` is set.

        Raises StartupError when the engine ends before: whoever started this process starts it
        again, and it meets the first machine's next engine.
        """
        check_version()
        process = EngineProcess(lambda _: None)
        await process.start(frames.Launch(engine_arguments(self._options, self._new_places())))
        logger.info("following node_rank=%d", self._options.node_rank)
        waits = [asyncio.ensure_future(it.wait()) for it in (stop, process.ended)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await process.stop()
        if not stop.is_set():
            raise StartupError("the engine that this machine is part of ended")

    async def stop(self) -> None:
        """Ends the process; what runs on it fails. Again does nothing."""
        process, self._process = self._process, None
        if process is not None:
            await process.stop()
        if self._scratch is not None:
            await asyncio.to_thread(self._scratch.cleanup)
            self._scratch = None

    async def supervise(self, on_change: Callable[[bool], Awaitable[None]]) -> None:
        """Starts the engine again whenever its process is gone."""
        while self._process is not None:
            process = self._process
            await process.ended.wait()
            if self._process is not process:
                return
            logger.error("the SGLang engine is lost pid=%s", process.pid)
            await on_change(False)
            await process.stop()
            self._changes += self._mirror.forget()
            await self._relaunch()
            self.restarts += 1
            await on_change(True)

    def match(self, request: EngineRequest) -> int:
        """Returns how many prompt tokens the cache holds, as far as its events told."""
        size = self._options.block_size
        root = root_hash(self.capabilities.model, request.cache_salt)
        matched = 0
        for block_hash in chained_hashes(request.input_ids, size, root):
            if not self._mirror.holds(block_hash):
                break
            matched += size
        return matched

    def reserve(self, request: EngineRequest) -> Reservation:
        """Is not for this engine."""
        raise _pairs_by_room()

    def release(self, reservation: Reservation) -> None:
        """Is not for this engine."""
        raise _pairs_by_room()

    def keep(self, reservation: Reservation, input_ids: Sequence[int]) -> None:
        """Is not for this engine."""
        raise _pairs_by_room()

    async def send_cached(self, request: EngineRequest, destination: KvDestination) -> KvReceipt:
        """Is not for this engine."""
        raise _pairs_by_room()

    async def prefill(self, request: EngineRequest, destination: KvDestination) -> Prefilled:
        """Is not for this engine."""
        raise _pairs_by_room()

    async def generate(
        self,
        request: EngineRequest,
        reservation: Reservation | None = None,
        prefilled: Prefilled | None = None,
    ) -> AsyncGenerator[TokenEvent, None]:
        """Streams tokens of an aggregated engine."""
        if self._options.role != AGGREGATED or reservation is not None:
            raise _pairs_by_room()
        async with aclosing(self._tokens(request, {})) as events:
            async for event in events:
                yield event

    async def generate_from_room(
        self, request: EngineRequest, room: Room
    ) -> AsyncGenerator[TokenEvent, None]:
        """Streams tokens of a decode engine once the KV came."""
        async with aclosing(self._tokens(request, _meet(room))) as events:
            async for event in events:
                yield event

    async def prefill_in_room(self, request: EngineRequest, room: Room) -> Prefilled:
        """Computes the prompt and hands its KV over."""
        if room.rendezvous != self._rendezvous:
            raise PreconditionError(
                f"legs meet at {self._rendezvous} now, not at {room.rendezvous}",
                reason=RENDEZVOUS_CHANGED,
            )
        async with aclosing(self._tokens(request, _meet(room))) as events:
            prefilled = None
            async for event in events:
                prefilled = event.prefilled or prefilled
        assert prefilled is not None, "a stream that ends well has a token"
        return prefilled

    def stats(self) -> EngineStats:
        """Returns the last figures of the scheduler; while it is lost, none is free."""
        capabilities, process = self.capabilities, self._process
        return engine_stats(
            process.snapshot if process is not None else {},
            kv_blocks=capabilities.kv_blocks,
            block_size=capabilities.block_size,
            indexed_blocks=len(self._mirror),
            asked=process.asked if process is not None else 0,
            answering=process.answering if process is not None else 0,
        )

    def take_samples(self) -> EngineSamples:
        """Returns what was measured since the last call."""
        return self._samples.take()

    def take_kv_events(self) -> Sequence[KvEvent]:
        """Returns what changed in the prefix cache since the last call."""
        changes, self._changes = self._changes, []
        return changes

    def cached_hashes(self) -> Sequence[int]:
        """Returns the hashes of all known blocks."""
        return self._mirror.hashes()

    @property
    def pid(self) -> int | None:
        """The engine's process, while there is one."""
        return self._process.pid if self._process is not None else None

    def _new_places(self) -> Places:
        if self._scratch is None:
            self._scratch = TemporaryDirectory(prefix="baton-sglang-")
        return new_places(Path(self._scratch.name))

    async def _launch(self) -> None:
        options = self._options
        places = self._new_places()
        arguments = engine_arguments(options, places)
        process = EngineProcess(self._take_events)
        ready = await process.start(frames.Launch(arguments, places.events, places.replay))
        self._process = process
        self._capabilities = await asyncio.to_thread(describe, options, arguments, ready)
        if options.role == PREFILL:
            self._rendezvous = f"{options.reachable}:{places.bootstrap}"
        await self._warm_up()

    async def _relaunch(self) -> None:
        for attempt in range(1, MAX_RESTARTS + 1):
            try:
                await self._launch()
            except (StartupError, UnavailableError) as error:
                logger.warning("the SGLang engine did not come back attempt=%d: %s", attempt, error)
                if attempt == MAX_RESTARTS:
                    raise
                await asyncio.sleep(RESTART_BACKOFF_S * attempt)
            else:
                return

    async def _warm_up(self) -> None:
        """Runs one request through; legs of a pair meet SGLang's own stand-in for a peer."""
        arguments: dict[str, Any] = {
            "input_ids": list(range(1, 1 + WARM_UP_TOKENS)),
            "sampling_params": {"max_new_tokens": 2, "temperature": 0.0, "ignore_eos": True},
        }
        if self._options.role != AGGREGATED:
            meeting = {"bootstrap_host": SGLANG_FAKE_HOST, "bootstrap_port": 1, "bootstrap_room": 0}
            arguments |= meeting
        assert self._process is not None
        async for output in self._process.stream(arguments):
            if output.finish is not None:
                finish_reason(output.finish)

    async def _tokens(
        self, request: EngineRequest, meeting: dict[str, Any]
    ) -> AsyncGenerator[TokenEvent, None]:
        check_request(request, self.capabilities)
        if self._process is None:
            raise UnavailableError("the engine ended", reason="ENGINE_DOWN")
        arguments = self._arguments(request) | meeting
        first_s: float | None = None
        count = 0
        async with AsyncExitStack() as held:
            outputs = await held.enter_async_context(aclosing(self._process.stream(arguments)))
            async for output in outputs:
                reason = None if output.finish is None else finish_reason(output.finish)
                prefilled = None
                if first_s is None and output.token_ids:
                    first_s = time.monotonic()
                    prefilled = self._first(request, output)
                count += len(output.token_ids)
                yield TokenEvent(tuple(output.token_ids), tuple(output.logprobs), reason, prefilled)
        if first_s is not None and self._process is not None:
            seconds = time.monotonic() - first_s
            self._samples.learn_steps(count, seconds, self._process.snapshot)

    def _first(self, request: EngineRequest, output: frames.Output) -> Prefilled:
        """Returns where the prompt's time went, and learns from it."""
        cached = int(output.meta.get("cached_tokens", 0))
        times = stage_times(output.meta, time.time())
        tokens = len(request.input_ids)
        self._samples.learn_prefill(tokens, cached, times.compute_s)
        receipt = None
        if self._options.role == PREFILL:
            receipt = self._receipt(request, times.handover_s)
        return Prefilled(
            first_token=output.token_ids[0],
            logprob=output.logprobs[0] if output.logprobs else None,
            receipt=receipt,
            queue_s=times.queue_s,
            compute_s=times.compute_s,
            cached_tokens=cached,
        )

    def _receipt(self, request: EngineRequest, handover_s: float) -> KvReceipt:
        """Returns what this leg had to give; how much the other side lacked only it can tell."""
        tokens, capabilities = len(request.input_ids), self.capabilities
        return KvReceipt(
            transfer_id=request.request_id,
            blocks=-(-tokens // capabilities.block_size),
            bytes=tokens * capabilities.kv_bytes_per_token,
            transfer_s=handover_s,
            blocks_digest=0,
            tokens=tokens,
        )

    def _arguments(self, request: EngineRequest) -> dict[str, Any]:
        options, sampling = self._options, request.sampling
        arguments: dict[str, Any] = {
            "input_ids": list(request.input_ids),
            "sampling_params": sampling_arguments(sampling, can_seed=options.can_seed),
            "return_logprob": sampling.logprobs,
            "priority": int(request.priority),
        }
        if request.traceparent:
            arguments["external_trace_header"] = {"traceparent": request.traceparent}
        if request.cache_salt:
            arguments["cache_salt"] = request.cache_salt
        return arguments

    def _take_events(self, report: frames.CacheEvents) -> None:
        if report.is_gap:
            self._changes += self._mirror.forget()
        try:
            events = [read_event(raw) for raw in report.events]
        except ValueError as error:
            logger.warning("cache events are not followed from here: %s", error)
            self._changes += self._mirror.forget()
            return
        self._changes += self._mirror.apply(event for event in events if event is not None)


def _meet(room: Room) -> dict[str, Any]:
    host, _, port = room.rendezvous.rpartition(":")
    return {"bootstrap_host": host, "bootstrap_port": int(port), "bootstrap_room": room.number}


def _pairs_by_room() -> PreconditionError:
    return PreconditionError("this engine moves its KV itself", reason="PAIRS_BY_ROOM")
