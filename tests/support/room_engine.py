"""Engines without a model that meet in rooms: what SGLang's pair does, seen from the mesh.

A prompt's KV is its tokens, handed over in a room that a `Rooms` keeps for both engines. Holding
and aborting a prompt is that of the fake engine.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace

from baton.engine.base import EngineCapabilities, Prefilled, TokenEvent
from baton.engine.rooms import Room
from baton.errors import PreconditionError, UnavailableError
from baton.kv.transfer import KvReceipt, KvTransport
from baton.requests import EngineRequest, FinishReason
from tests.support.fake_engine import FakeEngine, next_token


@dataclass
class Rooms:
    """Where the engines of a test meet: what each room holds, and who is told when it was taken."""

    handed: dict[int, asyncio.Future[tuple[int, ...]]] = field(default_factory=dict)
    taken: dict[int, asyncio.Event] = field(default_factory=dict)

    def at(self, number: int) -> asyncio.Future[tuple[int, ...]]:
        return self.handed.setdefault(number, asyncio.get_running_loop().create_future())

    def was_taken(self, number: int) -> asyncio.Event:
        return self.taken.setdefault(number, asyncio.Event())


class FakeRoomEngine(FakeEngine):
    """Implements `RoomEngine`: computes prompts for a room, or generates from one.

    `may_report` holds the end of a prompt after its KV was taken; setting `is_lost` loses the
    engine with all that runs on it, once.
    """

    def __init__(self, rooms: Rooms, rendezvous: str = "") -> None:
        super().__init__(prefills_locally=False)
        self.rendezvous = rendezvous
        self.rooms_used: list[int] = []
        self.is_lost = asyncio.Event()
        self.may_report = asyncio.Event()
        self.may_report.set()
        self._rooms = rooms
        self._lives = 0

    @property
    def capabilities(self) -> EngineCapabilities:
        return replace(super().capabilities, takes_prefilled=not self.rendezvous)

    async def start(self, transport: KvTransport) -> None:
        self._transport = transport

    async def prefill_in_room(self, request: EngineRequest, room: Room) -> Prefilled:
        if room.rendezvous != self.rendezvous:
            raise PreconditionError("legs meet elsewhere now", reason="RENDEZVOUS_CHANGED")
        self.rooms_used.append(room.number)
        has_ended = False
        try:
            async with self._turn():
                await self._unless_lost(self.may_prefill.wait())
                self._rooms.at(room.number).set_result(tuple(request.input_ids))
                await self._unless_lost(self._rooms.was_taken(room.number).wait())
            await self.may_report.wait()
            has_ended = True
        finally:
            self.aborted_prefills += not has_ended
        receipt = KvReceipt(request.request_id, 1, 1, 0.001, 0, len(request.input_ids))
        return Prefilled(next_token(request.input_ids), None, receipt, 0.001, 0.002, 0)

    async def generate_from_room(
        self, request: EngineRequest, room: Room
    ) -> AsyncGenerator[TokenEvent, None]:
        prompt = await asyncio.shield(self._rooms.at(room.number))
        assert prompt == tuple(request.input_ids), "another request's room"
        self._rooms.was_taken(room.number).set()
        async with aclosing(self._answer(request)) as events:
            async for event in events:
                yield event

    async def supervise(self, on_change: Callable[[bool], Awaitable[None]]) -> None:
        while True:
            await self.is_lost.wait()
            await on_change(False)
            self._lives += 1
            self.rendezvous = f"{self.rendezvous.partition('#')[0]}#{self._lives}"
            self.is_lost.clear()
            await on_change(True)

    async def _answer(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        tokens = list(request.input_ids)
        limit = request.sampling.max_tokens
        async with self._one_more():
            for count in range(1, limit + 1):
                tokens.append(next_token(tokens))
                told = Prefilled(tokens[-1], None, None, 0.0, 0.0, 0) if count == 1 else None
                reason = FinishReason.LENGTH if count == limit else None
                yield TokenEvent((tokens[-1],), finish_reason=reason, prefilled=told)
                await self._unless_lost(self.may_decode.wait())

    @asynccontextmanager
    async def _one_more(self) -> AsyncGenerator[None, None]:
        self._decoding += 1
        try:
            yield
        finally:
            self._decoding -= 1

    async def _unless_lost(self, wanted: Awaitable[object]) -> None:
        """Waits; raises what a request meets whose engine is lost meanwhile."""
        work = asyncio.ensure_future(wanted)
        lost = asyncio.ensure_future(self.is_lost.wait())
        try:
            await asyncio.wait((work, lost), return_when=asyncio.FIRST_COMPLETED)
            if lost.done() and not work.done():
                raise UnavailableError("the engine is lost", reason="ENGINE_DOWN")
        finally:
            work.cancel()
            lost.cancel()
