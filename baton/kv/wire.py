"""The seam between the transfer protocol and whatever moves bytes (NIXL, or memmove in tests).

A wire is owned by one thread (baton/kv/mover.py), which makes every call below; none may block for
longer than a copy takes. Failures are `TransferError`, reason PEER_LOST where the peer is known to
be gone.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from baton.kv.notices import PoolMetadata
from baton.kv.transfer import PoolMemory

WRITE_BYTES = 16 << 20
"""What most wires take as one write."""


class ReceivedNotice(NamedTuple):
    """Bytes that the agent `writer` sent behind its data."""

    writer: str
    raw: bytes


class WireWrite(Protocol):
    """One posted write."""

    def is_done(self) -> bool:
        """Tells whether all bytes are in the peer's pool, where a notice sent now finds them.

        Raises TransferError if the write failed; no byte of it is written any more then.
        """
        ...

    def release(self) -> None:
        """Frees what the write holds; called once, after its end or when it is given up."""
        ...


class Wire(Protocol):
    """Moves blocks between this worker's pool and its peers' pools."""

    backend: str
    needs_polling: bool
    """Whether notices arrive only by `take_notices`; otherwise `wake` announces them."""

    def open(self, memory: PoolMemory, wake: Callable[[], None]) -> bytes:
        """Registers the pool and returns what a peer's `connect` needs.

        Raises StartupError. `wake` may be called from any thread.
        """
        ...

    def close(self) -> None:
        """Deregisters the pool; all peers are disconnected before."""
        ...

    def connect(self, peer: PoolMetadata) -> None:
        """Makes a peer's pool writable. Raises PreconditionError if its metadata is unusable."""
        ...

    def disconnect(self, agent: str) -> None:
        """Forgets a peer."""
        ...

    def polls_closely(self, *, for_strangers: bool) -> bool:
        """Tells whether notices have to be polled for often now.

        `for_strangers` says that a peer which is not connected yet may write.
        """
        ...

    def path(self, agent: str) -> str:
        """Returns how bytes get to a connected peer, for people."""
        ...

    def write_bytes(self, agent: str) -> int:
        """Returns the most bytes of one write: enough for full speed, few to wait for."""
        ...

    def write(self, agent: str, sources: Sequence[int], targets: Sequence[int]) -> WireWrite:
        """Posts one write of whole blocks. Raises TransferError."""
        ...

    def notify(self, agent: str, notice: bytes) -> None:
        """Sends a notice, behind all writes that are done. Raises TransferError."""
        ...

    def take_notices(self) -> Sequence[ReceivedNotice]:
        """Returns the notices that arrived since the last call, and lets the wire progress."""
        ...
