"""Engines that pair by room: the KV moves between two engines that the mesh only introduces.

Such an engine hands out no blocks. Both legs of a request are dispatched at once with the same
room, a number of 63 bits that the mesh makes for each attempt and never reuses; the engines meet
at the prefill engine's rendezvous, and the decode engine's first token proves that the KV arrived.
`Engine.reserve`, `release` and `prefill` of these engines raise PreconditionError.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, cast

from baton.engine.base import Engine, Prefilled, TokenEvent
from baton.requests import EngineRequest

ROOM_BITS = 63

RENDEZVOUS_CHANGED = "RENDEZVOUS_CHANGED"
"""Reason with which a leg is refused whose room is at an earlier start of the engine."""


@dataclass(frozen=True, slots=True)
class Room:
    """Where the two legs of one attempt meet: a prefill engine's rendezvous, and a number."""

    rendezvous: str
    number: int


def new_room(rendezvous: str) -> Room:
    """Returns a room that no other request has, at host:port `rendezvous`."""
    return Room(rendezvous, secrets.randbits(ROOM_BITS))


class RoomEngine(Engine, Protocol):
    """An engine whose KV meets in rooms; it lives apart and can be lost and started again."""

    @property
    def rendezvous(self) -> str:
        """host:port where legs meet, of a prefill engine; another one after each start."""
        ...

    async def prefill_in_room(self, request: EngineRequest, room: Room) -> Prefilled:
        """Computes the prompt and hands its KV to whoever is in the room.

        Returns when the KV was taken. That proves nothing to the reader: only its own first token
        does. Raises PreconditionError (RENDEZVOUS_CHANGED) when the room is at an earlier start's.
        """
        ...

    def generate_from_room(
        self, request: EngineRequest, room: Room
    ) -> AsyncGenerator[TokenEvent, None]:
        """Streams tokens once the KV came; `prefilled` of the first event is this side's view.

        Closing it aborts and returns once the engine let go of the request.
        """
        ...

    async def supervise(self, on_change: Callable[[bool], Awaitable[None]]) -> None:
        """Starts the engine again whenever it is lost; tells `on_change` whether it is up.

        Raises StartupError when it cannot be started again.
        """
        ...


class Follower(Protocol):
    """The part of an engine that spans several machines on all but the first of them.

    It computes for the first machine's engine, serves nobody and is no member of the fleet.
    """

    async def follow(self, stop: asyncio.Event) -> None:
        """Computes until `stop` is set. Raises StartupError when the engine ends before that."""
        ...


def as_follower(engine: Engine) -> Follower | None:
    """Returns the engine as one that only follows, or None for one that serves."""
    return cast("Follower", engine) if getattr(engine, "is_follower", False) else None


def as_room_engine(engine: Engine) -> RoomEngine | None:
    """Returns the engine as one that pairs by room, or None for one that hands out blocks."""
    # Asked of the class: an engine that has not started yet has no capabilities to look at.
    return cast("RoomEngine", engine) if hasattr(type(engine), "prefill_in_room") else None
