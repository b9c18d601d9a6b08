"""Transfers between processes of one host whose pools both can map: a copy in memory.

A pool in a segment (baton/kv/segment.py) is mapped by its peers, so that a write is one memcpy and
the kernel has no part in it; NIXL's way on one host, process_vm_writev, reaches about half of that.
Notices go through a pipe of the reader (baton/kv/pipe.py).
"""

import ctypes
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from baton.errors import PreconditionError, StartupError
from baton.kv.notices import PoolMetadata
from baton.kv.pipe import NoticePipe, PipeWriter
from baton.kv.runs import runs
from baton.kv.segment import PLACE_BYTES, Place, here, map_file, open_place, unmap
from baton.kv.transfer import PoolMemory
from baton.kv.wire import ReceivedNotice

MAPPED_WRITE_BYTES = 256 << 20
"""Most bytes of one write, 25 to 40 ms of copying: one long memcpy beats many, since the C library
changes to stores that pass the caches only from some 100 MB on."""


@dataclass(frozen=True, slots=True)
class _MappedPool:
    """A peer's pool as it is mapped here."""

    address: int
    size_bytes: int
    pipe: PipeWriter

    def close(self) -> None:
        unmap(self.address, self.size_bytes)
        self.pipe.close()


class SameHostWire:
    """Copies blocks into the mapped pools of peers. Used by one thread only."""

    backend = "shared-memory"
    needs_polling = False

    def __init__(self, agent: str) -> None:
        self._agent = agent
        self._memory: PoolMemory | None = None
        self._pipe: NoticePipe | None = None
        self._pools: dict[str, _MappedPool] = {}

    def open(self, memory: PoolMemory, wake: Callable[[], None]) -> bytes:
        """Returns where peers find the pool and the pipe. Raises StartupError without a segment."""
        segment = memory.segment
        if segment is None:
            raise StartupError("the pool's memory cannot be shared with other processes")
        assert segment.address == memory.base_address
        self._memory = memory
        self._pipe = NoticePipe(self._agent, wake)
        return here(segment.descriptor).encode() + self._pipe.place.encode()

    def close(self) -> None:
        """Ends the pipe."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def connect(self, peer: PoolMetadata) -> None:
        """Maps a peer's pool. Raises PreconditionError (OTHER_HOST) where that cannot be."""
        if len(peer.connection) != 2 * PLACE_BYTES:
            raise PreconditionError(f"{peer.agent} shares no pool", reason="OTHER_HOST")
        pool, pipe = (
            Place.decode(peer.connection[:PLACE_BYTES]),
            Place.decode(peer.connection[PLACE_BYTES:]),
        )
        size = peer.memory.block_bytes * peer.memory.block_count
        address = _map(pool, size)
        try:
            self._pools[peer.agent] = _MappedPool(address, size, PipeWriter(pipe, peer.agent))
        except PreconditionError:
            unmap(address, size)
            raise

    def disconnect(self, agent: str) -> None:
        """Unmaps a peer's pool."""
        self._pools.pop(agent).close()

    def polls_closely(self, *, for_strangers: bool) -> bool:
        """Never: the pipe wakes whoever waits."""
        return False

    def path(self, agent: str) -> str:
        """Returns how bytes get to the peer."""
        return self.backend

    def write_bytes(self, agent: str) -> int:
        """Returns the most bytes of one write."""
        return MAPPED_WRITE_BYTES

    def write(self, agent: str, sources: Sequence[int], targets: Sequence[int]) -> "_Copied":
        """Copies the blocks now, with the GIL released, adjacent ones together."""
        assert self._memory is not None
        size, ours = self._memory.block_bytes, self._memory.base_address
        theirs = self._pools[agent].address
        for source, target, count in runs(sources, targets):
            ctypes.memmove(theirs + target * size, ours + source * size, count * size)
        return _COPIED

    def notify(self, agent: str, notice: bytes) -> None:
        """Sends a notice; what was copied before is visible to whoever reads it."""
        self._pools[agent].pipe.put(self._agent, notice)

    def take_notices(self) -> Sequence[ReceivedNotice]:
        """Returns what arrived."""
        return () if self._pipe is None else self._pipe.take()


class _Copied:
    """A write that is over."""

    def is_done(self) -> bool:
        return True

    def release(self) -> None:
        pass


_COPIED = _Copied()


def _map(place: Place, size_bytes: int) -> int:
    descriptor = open_place(place, os.O_RDWR | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_size < size_bytes:
            raise PreconditionError("the peer's pool is smaller than it says", reason="OTHER_HOST")
        return map_file(descriptor, size_bytes)
    except OSError as error:
        raise PreconditionError(
            f"the peer's pool cannot be mapped ({error.strerror})", reason="OTHER_HOST"
        ) from error
    finally:
        os.close(descriptor)
