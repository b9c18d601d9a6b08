"""The transport of engines that move KV themselves: a name, and nothing to move."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

from baton.errors import PreconditionError
from baton.kv.transfer import KvDestination, KvReceipt, OutgoingTransfer, PoolMemory


class EngineTransport:
    """Stands where workers expect a transport; see baton/engine/rooms.py for what moves KV."""

    def __init__(self, agent: str, backend: str) -> None:
        self.agent = agent
        self.backend = backend

    async def start(self, memory: PoolMemory) -> None:
        """Does nothing."""

    async def stop(self) -> None:
        """Does nothing."""

    def metadata(self) -> bytes:
        """Returns nothing: engines introduce themselves to each other."""
        return b""

    async def connect(self, agent: str, metadata: bytes, layout: str) -> None:
        """Is not for this kind."""
        raise _not_here()

    async def disconnect(self, agent: str) -> None:
        """Does nothing."""

    def is_connected(self, agent: str) -> bool:
        """Returns False: nothing was introduced here."""
        return False

    def fault(self) -> str:
        """Returns nothing: engines are supervised for themselves."""
        return ""

    def paths(self) -> Mapping[str, str]:
        """Returns nothing: how bytes travel only the engines know."""
        return {}

    def introducing(self) -> AbstractContextManager[None]:
        """Minds nothing."""
        return nullcontext()

    def open(self, destination: KvDestination) -> OutgoingTransfer:
        """Is not for this kind."""
        raise _not_here()

    def expect(
        self, transfer_id: str, cached_tokens: int, block_ids: Sequence[int]
    ) -> KvDestination:
        """Is not for this kind."""
        raise _not_here()

    async def verify(self, receipt: KvReceipt, expected_tokens: int, timeout_s: float) -> None:
        """Is not for this kind."""
        raise _not_here()

    def forget(self, transfer_id: str) -> None:
        """Does nothing."""


def _not_here() -> PreconditionError:
    return PreconditionError("the engine moves KV itself", reason="PAIRS_BY_ROOM")
