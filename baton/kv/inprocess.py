"""Transfers between workers of one process: real bytes, real notices, no NIXL.

For tests and for fleets of simulated workers. Everything but the copying is the code that NIXL
runs on. A pool whose `base_address` is 0 has no bytes; its transfers carry notices only. Wire
`Faults` into the fabric to see what the protocol does about them.
"""

import ctypes
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from baton.errors import PreconditionError, TransferError
from baton.kv.notices import PoolMetadata
from baton.kv.transfer import PoolMemory
from baton.kv.wire import WRITE_BYTES, ReceivedNotice
from baton.kv.wired import DEFAULT_TIMEOUT_S, WiredTransport


@dataclass(slots=True)
class Faults:
    """What goes wrong on writes to one agent; each count is used up by as many writes.

    Change it before the writes that it is about.
    """

    failing_writes: int = 0
    """Writes that fail before a byte moved."""
    partial_writes: int = 0
    """Writes that fail after half of their blocks moved."""
    hanging_writes: int = 0
    """Writes that neither end nor fail until `release_hanging`."""
    dropped_notices: int = 0
    """Notices, of chunks or final, that get lost."""
    doubled_notices: int = 0
    """Notices that arrive twice."""
    delay_s: float = 0.0
    """Time from posting until a write's bytes arrive."""
    forged_writer: str = ""
    """If set, notices arrive under this agent's name."""
    held: threading.Event = field(default_factory=threading.Event)

    def release_hanging(self) -> None:
        """Lets hanging writes end."""
        self.held.set()

    def uses(self, fault: str) -> bool:
        """Tells whether a counted fault strikes now, and uses it up."""
        left: int = getattr(self, fault)
        if left > 0:
            setattr(self, fault, left - 1)
        return left > 0


class InProcessFabric:
    """Connects the in-process transports that share it."""

    def __init__(self) -> None:
        self._ports: dict[str, _Port] = {}
        self._faults: dict[str, Faults] = {}
        self._severed: set[str] = set()

    def faults_towards(self, agent: str) -> Faults:
        """Returns the faults of writes to `agent`, to be changed in place."""
        return self._faults.setdefault(agent, Faults())

    def sever(self, agent: str) -> None:
        """Cuts an agent off, as if its process were killed."""
        self._severed.add(agent)

    def attach(self, agent: str, port: "_Port") -> None:
        """Makes an agent reachable."""
        self._ports[agent] = port

    def detach(self, agent: str) -> None:
        """Makes an agent unreachable."""
        self._ports.pop(agent, None)

    def port(self, writer: str, agent: str) -> "_Port":
        """Returns where `writer` reaches `agent`. Raises TransferError (PEER_LOST)."""
        port = self._ports.get(agent)
        if port is None or self._severed & {writer, agent}:
            raise TransferError(f"{agent} is unreachable", reason="PEER_LOST")
        return port


@dataclass(frozen=True, slots=True)
class _Port:
    """An agent's side of the fabric: its memory and its letter box."""

    memory: PoolMemory
    inbox: list[ReceivedNotice]
    lock: threading.Lock
    wake: Callable[[], None]

    def deliver(self, notice: ReceivedNotice) -> None:
        with self.lock:
            self.inbox.append(notice)
        self.wake()


class _Write:
    """One write; it happens in `is_done` once its delay is over."""

    def __init__(self, happen: Callable[[], None], due_s: float, held: threading.Event | None):
        self._happen: Callable[[], None] | None = happen
        self._due_s = due_s
        self._held = held

    def is_done(self) -> bool:
        if self._held is not None and not self._held.is_set():
            return False
        if time.monotonic() < self._due_s:
            return False
        if self._happen is not None:
            happen, self._happen = self._happen, None
            happen()
        return True

    def release(self) -> None:
        self._happen = None


class InProcessWire:
    """Moves blocks with memmove between the pools of one process."""

    backend = "in-process"
    needs_polling = False

    def __init__(self, agent: str, fabric: InProcessFabric) -> None:
        self._agent = agent
        self._fabric = fabric
        self._port: _Port | None = None

    def open(self, memory: PoolMemory, wake: Callable[[], None]) -> bytes:
        """Attaches to the fabric."""
        self._port = _Port(memory, [], threading.Lock(), wake)
        self._fabric.attach(self._agent, self._port)
        return b"in-process"

    def close(self) -> None:
        """Detaches from the fabric."""
        self._fabric.detach(self._agent)

    def connect(self, peer: PoolMetadata) -> None:
        """Checks that the peer is of this kind; reaching it is tried by the first write."""
        if peer.connection != b"in-process":
            raise PreconditionError(
                f"{peer.agent} does not use in-process transfers", reason="BACKEND_MISMATCH"
            )

    def disconnect(self, agent: str) -> None:
        """Nothing is held for a peer."""

    def polls_closely(self, *, for_strangers: bool) -> bool:
        """Never: every notice wakes."""
        return False

    def path(self, agent: str) -> str:
        """Returns the backend."""
        return self.backend

    def write_bytes(self, agent: str) -> int:
        """Returns the most bytes of one write."""
        return WRITE_BYTES

    def write(self, agent: str, sources: Sequence[int], targets: Sequence[int]) -> _Write:
        """Posts a write."""
        self._fabric.port(self._agent, agent)
        faults = self._fabric.faults_towards(agent)
        held = faults.held if faults.uses("hanging_writes") else None
        due_s = time.monotonic() + faults.delay_s
        return _Write(lambda: self._copy(agent, sources, targets), due_s, held)

    def notify(self, agent: str, notice: bytes) -> None:
        """Puts a notice into the peer's letter box."""
        port = self._fabric.port(self._agent, agent)
        faults = self._fabric.faults_towards(agent)
        if faults.uses("dropped_notices"):
            return
        received = ReceivedNotice(faults.forged_writer or self._agent, notice)
        port.deliver(received)
        if faults.uses("doubled_notices"):
            port.deliver(received)

    def take_notices(self) -> Sequence[ReceivedNotice]:
        """Empties the letter box."""
        if self._port is None or not self._port.inbox:
            return ()
        with self._port.lock:
            notices = list(self._port.inbox)
            self._port.inbox.clear()
        return notices

    def _copy(self, agent: str, sources: Sequence[int], targets: Sequence[int]) -> None:
        assert self._port is not None
        port = self._fabric.port(self._agent, agent)
        faults = self._fabric.faults_towards(agent)
        if faults.uses("failing_writes"):
            raise TransferError(f"write to {agent} failed")
        is_partial = faults.uses("partial_writes")
        pairs = list(zip(sources, targets, strict=True))
        for source, target in pairs[: len(pairs) // 2] if is_partial else pairs:
            _copy_block(self._port.memory, source, port.memory, target)
        if is_partial:
            raise TransferError(f"write to {agent} failed half-way")


def _copy_block(source_pool: PoolMemory, source: int, target_pool: PoolMemory, target: int) -> None:
    assert source < source_pool.block_count
    assert target < target_pool.block_count
    size = source_pool.block_bytes
    if source_pool.base_address and target_pool.base_address:
        ctypes.memmove(
            target_pool.base_address + target * size, source_pool.base_address + source * size, size
        )


class InProcessTransport(WiredTransport):
    """`KvTransport` between workers of one process that share a fabric."""

    def __init__(
        self, agent: str, fabric: InProcessFabric, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> None:
        super().__init__(agent, InProcessWire(agent, fabric), timeout_s)
