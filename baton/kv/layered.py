"""Several wires as one: each peer is reached by the first wire that can."""

import logging
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace

from baton.errors import PreconditionError, StartupError
from baton.kv.notices import PoolMetadata
from baton.kv.transfer import PoolMemory
from baton.kv.wire import ReceivedNotice, Wire, WireWrite

logger = logging.getLogger(__name__)

_LENGTH = struct.Struct("<I")


class LayeredWire:
    """Wires in the order of preference; the last one has to open, the others may not apply.

    A worker's connection bytes have one part per wire, empty where it did not open.
    """

    def __init__(self, *wires: Wire) -> None:
        self.backend = "+".join(wire.backend for wire in wires)
        self.needs_polling = any(wire.needs_polling for wire in wires)
        self._wires = wires
        self._opened: list[Wire] = []
        self._by_agent: dict[str, Wire] = {}

    def open(self, memory: PoolMemory, wake: Callable[[], None]) -> bytes:
        """Opens all wires that apply to the memory. Raises StartupError when the last does not."""
        parts = [self._open(wire, memory, wake) for wire in self._wires]
        return b"".join(_LENGTH.pack(len(part)) + part for part in parts)

    def close(self) -> None:
        """Closes all wires that were opened."""
        while self._opened:
            self._opened.pop().close()

    def connect(self, peer: PoolMetadata) -> None:
        """Connects by the first wire that reaches the peer. Raises what the last one raises."""
        parts = _split(peer.connection, len(self._wires))
        for wire, part in zip(self._wires, parts, strict=True):
            if wire not in self._opened or not part:
                continue
            try:
                wire.connect(replace(peer, connection=part))
            except PreconditionError as error:
                if wire is self._wires[-1]:
                    raise
                logger.debug("peer not reached agent=%s by=%s: %s", peer.agent, wire.backend, error)
            else:
                self._by_agent[peer.agent] = wire
                logger.info("peer reached agent=%s by=%s", peer.agent, wire.path(peer.agent))
                return
        raise PreconditionError(f"no wire reaches {peer.agent}", reason="PEER_UNREACHABLE")

    def disconnect(self, agent: str) -> None:
        """Forgets a peer."""
        self._by_agent.pop(agent).disconnect(agent)

    def polls_closely(self, *, for_strangers: bool) -> bool:
        """Only where a peer's wire has to, or any wire for a peer that is not connected yet."""
        wires = self._opened if for_strangers else self._by_agent.values()
        return any(wire.polls_closely(for_strangers=for_strangers) for wire in wires)

    def path(self, agent: str) -> str:
        """Returns how bytes get to the peer."""
        return self._by_agent[agent].path(agent)

    def write_bytes(self, agent: str) -> int:
        """Returns the most bytes of one write."""
        return self._by_agent[agent].write_bytes(agent)

    def write(self, agent: str, sources: Sequence[int], targets: Sequence[int]) -> WireWrite:
        """Posts a write on the peer's wire."""
        return self._by_agent[agent].write(agent, sources, targets)

    def notify(self, agent: str, notice: bytes) -> None:
        """Sends a notice on the peer's wire."""
        self._by_agent[agent].notify(agent, notice)

    def take_notices(self) -> Sequence[ReceivedNotice]:
        """Returns what arrived on any wire."""
        return [notice for wire in self._opened for notice in wire.take_notices()]

    def _open(self, wire: Wire, memory: PoolMemory, wake: Callable[[], None]) -> bytes:
        try:
            part = wire.open(memory, wake)
        except StartupError as error:
            if wire is self._wires[-1]:
                self.close()
                raise
            logger.info("wire not used backend=%s: %s", wire.backend, error)
            return b""
        self._opened.append(wire)
        return part


def _split(connection: bytes, count: int) -> list[bytes]:
    parts: list[bytes] = []
    start = 0
    for _ in range(count):
        body = start + _LENGTH.size
        if body > len(connection):
            raise _malformed()
        end = body + _LENGTH.unpack_from(connection, start)[0]
        parts.append(connection[body:end])
        start = end
    if start != len(connection):
        raise _malformed()
    return parts


def _malformed() -> PreconditionError:
    return PreconditionError(
        "the peer's connection bytes have other parts; do both workers run the same version?",
        reason="MALFORMED_METADATA",
    )
