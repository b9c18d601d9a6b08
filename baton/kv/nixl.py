"""Transfers with NIXL over UCX, which picks RDMA, NVLink, shared memory (CMA) or TCP.

Error handling mode "peer" and not "none": a peer's death must fail the writes to it. It makes
notices slower (about 0.2 ms on one host), not data. No progress thread: NIXL's spins on a core of
its own; the mover's thread makes progress when something is under way.

What NIXL 1.5 grants, and what follows: a write is done once UCX flushed the endpoint, so a notice
sent then finds its data in place. A posted write cannot be cancelled, so an abort waits for it.
A dead peer fails the next write at once with NIXL_ERR_REMOTE_DISCONNECT, and NIXL forgets it.
"""

import importlib
import logging
import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from baton.errors import PreconditionError, StartupError, TransferError
from baton.kv.notices import PoolMetadata
from baton.kv.transfer import PoolMemory
from baton.kv.wire import WRITE_BYTES, ReceivedNotice
from baton.kv.wired import DEFAULT_TIMEOUT_S, WiredTransport

logger = logging.getLogger(__name__)

_QUIET = {"NIXL_LOG_LEVEL": "FATAL", "UCX_LOG_LEVEL": "fatal"}
"""What fails reaches callers as typed errors; the libraries would print it to stderr as well."""

_GPU_WRITE_BYTES = 64 << 20
"""What takes a GPU about a millisecond; posting takes the host a quarter of one."""

_UCX_OPTIONS = {"ucx_error_handling_mode": "peer"}
_BACKEND = "UCX"


class NixlTransport(WiredTransport):
    """`KvTransport` over NIXL. `agent` must be new at every start of the worker."""

    def __init__(self, agent: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        super().__init__(agent, NixlWire(agent), timeout_s)


class NixlWire:
    """A NIXL agent with one registered pool. Used by one thread only."""

    backend = "nixl-ucx"
    needs_polling = True

    def __init__(self, agent: str) -> None:
        self._name = agent
        self._nixl: _Nixl | None = None
        self._registration: Any = None
        self._local_blocks: Any = None
        self._peer_blocks: dict[str, Any] = {}
        self._write_bytes = WRITE_BYTES

    def open(self, memory: PoolMemory, wake: Callable[[], None]) -> bytes:
        """Creates the agent and registers the pool. `wake` is not used: NIXL has to be polled."""
        try:
            segment, device_id = _segment(memory.device)
        except PreconditionError as error:
            raise StartupError(error.message) from error
        if segment == "VRAM":
            self._write_bytes = _GPU_WRITE_BYTES
        nixl = _Nixl(self._name)
        region = (memory.base_address, memory.block_bytes * memory.block_count, device_id, "")
        try:
            self._registration = nixl.agent.register_memory([region], segment, [_BACKEND])
            self._local_blocks = nixl.prepare_blocks("", memory)
            connection = nixl.agent.get_agent_metadata()
        except nixl.errors as error:
            raise StartupError(
                f"NIXL cannot register {region[1]} bytes of {memory.device} memory: {error}"
            ) from error
        self._nixl = nixl
        return bytes(connection)

    def close(self) -> None:
        """Deregisters the pool and drops the agent."""
        if self._nixl is None:
            return
        self._local_blocks.release()
        self._nixl.agent.deregister_memory(self._registration, [_BACKEND])
        self._nixl = self._local_blocks = self._registration = None

    def connect(self, peer: PoolMetadata) -> None:
        """Loads a peer's metadata and prepares one descriptor per block of its pool."""
        nixl = self._opened()
        try:
            name = nixl.agent.add_remote_agent(peer.connection)
        except nixl.errors as error:
            raise PreconditionError(
                f"NIXL does not accept the metadata of {peer.agent}: {error}",
                reason="MALFORMED_METADATA",
            ) from error
        if name.decode() != peer.agent:
            self._remove(name.decode())
            raise PreconditionError(
                f"NIXL metadata of {name.decode()} was given for {peer.agent}",
                reason="METADATA_MISMATCH",
            )
        try:
            self._peer_blocks[peer.agent] = nixl.prepare_blocks(peer.agent, peer.memory)
        except nixl.errors as error:
            self._remove(peer.agent)
            raise PreconditionError(
                f"the pool of {peer.agent} cannot be reached: {error}", reason="PEER_UNREACHABLE"
            ) from error

    def disconnect(self, agent: str) -> None:
        """Releases a peer's descriptors and closes the connection."""
        self._peer_blocks.pop(agent).release()
        self._remove(agent)

    def polls_closely(self, *, for_strangers: bool) -> bool:
        """Always: NIXL has no descriptor to wait on, and makes progress only when asked."""
        return True

    def path(self, agent: str) -> str:
        """Returns the backend; which transport UCX took it does not tell."""
        return self.backend

    def write_bytes(self, agent: str) -> int:
        """Returns the most bytes of one write."""
        return self._write_bytes

    def write(self, agent: str, sources: Sequence[int], targets: Sequence[int]) -> "_NixlWrite":
        """Posts one write; with CMA the bytes are copied here, with the GIL released."""
        nixl = self._opened()
        try:
            handle = nixl.agent.make_prepped_xfer(
                "WRITE",
                self._local_blocks,
                list(sources),
                self._peer_blocks[agent],
                list(targets),
                backends=[_BACKEND],
            )
        except nixl.errors as error:
            raise nixl.failure(agent, error) from error
        write = _NixlWrite(nixl, agent, handle)
        try:
            write.post()
        except TransferError:
            write.release()
            raise
        return write

    def notify(self, agent: str, notice: bytes) -> None:
        """Sends a notice on the connection that the writes took."""
        nixl = self._opened()
        try:
            # Naming the backend, the only one here, fails in NIXL 1.5.1 with a TypeError.
            nixl.agent.send_notif(agent, notice)
        except nixl.errors as error:
            raise nixl.failure(agent, error) from error

    def take_notices(self) -> Sequence[ReceivedNotice]:
        """Lets UCX progress and returns what arrived."""
        if self._nixl is None:
            return ()
        received: dict[str, list[bytes]] = self._nixl.agent.get_new_notifs([_BACKEND])
        return [ReceivedNotice(writer, raw) for writer, raws in received.items() for raw in raws]

    def _opened(self) -> "_Nixl":
        assert self._nixl is not None
        return self._nixl

    def _remove(self, agent: str) -> None:
        nixl = self._opened()
        try:
            nixl.agent.remove_remote_agent(agent)
        except nixl.errors as error:
            # NIXL forgets a peer by itself when a write finds it disconnected.
            logger.debug("remote agent already gone agent=%s error=%s", agent, error)


class _Nixl:
    """The library, its agent and its errors."""

    def __init__(self, name: str) -> None:
        for variable, level in _QUIET.items():
            os.environ.setdefault(variable, level)
        bindings, api = _import_nixl()
        raised = [value for value in vars(bindings).values() if isinstance(value, type)]
        self.errors: tuple[type[Exception], ...] = (
            RuntimeError,
            *(value for value in raised if issubclass(value, Exception)),
        )
        self._disconnected: type[Exception] = bindings.nixlRemoteDisconnectError
        try:
            self.agent = api.nixl_agent(
                name, api.nixl_agent_config(enable_prog_thread=False, backends=[])
            )
            self.agent.create_backend(_BACKEND, _UCX_OPTIONS)
        except self.errors as error:
            raise StartupError(f"NIXL cannot start its {_BACKEND} backend: {error}") from error

    def prepare_blocks(self, agent: str, memory: PoolMemory) -> Any:
        """Returns a descriptor list of one entry per block, local when `agent` is empty."""
        segment, device_id = _segment(memory.device)
        size = memory.block_bytes
        # One strided row (address, length, device, stride, count) stands for all blocks.
        row = [memory.base_address, size, device_id, size, memory.block_count]
        blocks = np.array([row], dtype=np.uint64)
        return self.agent.prep_xfer_dlist(agent, blocks, segment, [_BACKEND])

    def failure(self, agent: str, error: Exception) -> TransferError:
        """Returns the typed error for what NIXL raised about a peer."""
        reason = "PEER_LOST" if isinstance(error, self._disconnected) else "TRANSFER_FAILED"
        return TransferError(f"write to {agent} failed: {error}", reason=reason)


class _NixlWrite:
    """One transfer handle."""

    def __init__(self, nixl: _Nixl, agent: str, handle: Any) -> None:
        self._nixl = nixl
        self._agent = agent
        self._handle = handle
        self._is_done = False

    def post(self) -> None:
        """Starts the write. Raises TransferError."""
        self._book(lambda: self._nixl.agent.transfer(self._handle))

    def is_done(self) -> bool:
        """Lets UCX progress and tells whether the write is through."""
        if not self._is_done:
            self._book(lambda: self._nixl.agent.check_xfer_state(self._handle))
        return self._is_done

    def release(self) -> None:
        """Frees the handle; of a write that is still active NIXL may keep it."""
        try:
            self._handle.release()
        except self._nixl.errors as error:
            logger.warning("transfer handle kept by NIXL agent=%s error=%s", self._agent, error)

    def _book(self, ask: Callable[[], str]) -> None:
        try:
            state = ask()
        except self._nixl.errors as error:
            raise self._nixl.failure(self._agent, error) from error
        if state == "ERR":
            raise TransferError(f"write to {self._agent} failed")
        self._is_done = state == "DONE"


def _import_nixl() -> tuple[ModuleType, ModuleType]:
    """Imports NIXL late: it reads its log level from the environment when it loads."""
    try:
        api = importlib.import_module("nixl._api")
        bindings = importlib.import_module("nixl._bindings")
    except ImportError as error:
        raise StartupError(
            "NIXL is missing; install it with `pip install baton[worker]`"
        ) from error
    return bindings, api


def _segment(device: str) -> tuple[str, int]:
    """Returns NIXL's memory type and device id for a torch device name such as "cuda:1"."""
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return "DRAM", 0
    if kind == "cuda" and (not index or index.isdecimal()):
        return "VRAM", int(index or 0)
    raise PreconditionError(f"NIXL cannot reach memory of {device}", reason="UNKNOWN_DEVICE")
