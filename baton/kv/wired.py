"""The transfer protocol over any wire: what baton/kv/nixl.py and baton/kv/inprocess.py share."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager

from baton.errors import InternalError, PreconditionError
from baton.kv.incoming import IncomingTransfers
from baton.kv.mover import Mover
from baton.kv.notices import PoolMetadata, decode_metadata, encode_metadata
from baton.kv.outgoing import OutgoingWrites
from baton.kv.transfer import (
    KvDestination,
    KvReceipt,
    OutgoingTransfer,
    PoolMemory,
    TransferState,
)
from baton.kv.wire import Wire

DEFAULT_TIMEOUT_S = 10.0


class WiredOutgoing:
    """The handle of one outgoing transfer. See `OutgoingTransfer`."""

    def __init__(self, mover: Mover, writes: OutgoingWrites, destination: KvDestination):
        self._mover = mover
        self._writes = writes
        self._destination = destination

    @property
    def state(self) -> TransferState:
        """Where the transfer stands."""
        return self._writes.state

    def push(self, source_blocks: Sequence[int], offset: int) -> None:
        """Starts copying and returns at once; after a failure or an abort it does nothing.

        Raises InternalError when the blocks do not fit the destination.
        """
        sources = tuple(source_blocks)
        room = len(self._destination.block_ids)
        if offset < 0 or offset + len(sources) > room:
            raise InternalError(
                f"transfer {self._destination.transfer_id}: push of {len(sources)} blocks at "
                f"{offset} into {room}"
            )
        self._do(lambda: self._writes.push(sources, offset))

    async def finish(self, tokens: int) -> KvReceipt:
        """Waits until every write ended and returns the receipt. Call it once.

        Raises TransferError if any write failed; then, too, no write can happen any more
        (WRITE_STUCK from `abort` is the exception). Each write has the transport's deadline.
        """
        receipt: Future[KvReceipt] = self._mover.new_reply()
        self._do(lambda: self._writes.finish(tokens, receipt))
        return await self._mover.reply(receipt)

    async def abort(self) -> None:
        """Drops what is not posted and waits for the rest to end; may be called again.

        Raises TransferError (WRITE_STUCK) when a posted write neither ended nor failed within
        the transport's deadline: the blocks of both sides may still be in use then, and the
        peer is lost.
        """
        done: Future[None] = self._mover.new_reply()
        self._do(lambda: self._writes.abort(done))
        await self._mover.reply(done)

    def _do(self, change: Callable[[], None]) -> None:
        def run() -> None:
            change()
            self._mover.activate(self._writes)

        self._mover.post(run)


class WiredTransport:
    """A `KvTransport` on a wire.

    `agent` is the worker's incarnation. `timeout_s` bounds every wait: for one write (a few MiB),
    for closing a peer, for the thread that owns the wire. A peer to which a write failed is lost:
    `is_connected` turns false, and it must be introduced again.
    """

    def __init__(self, agent: str, wire: Wire, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self.agent = agent
        self.backend = wire.backend
        self.incoming = IncomingTransfers(agent)
        self._wire = wire
        self._timeout_s = timeout_s
        self._mover = Mover(agent, wire, self.incoming, timeout_s)
        self._memory: PoolMemory | None = None
        self._metadata = b""

    async def start(self, memory: PoolMemory) -> None:
        """Registers the pool and starts the thread. Call it once.

        Raises StartupError when the backend is missing or refuses the memory.
        """
        connection = await self._mover.start(memory)
        self._memory = memory
        self._metadata = encode_metadata(PoolMetadata(self.agent, memory, connection))
        self.incoming.start(memory)

    async def stop(self) -> None:
        """Fails all transfers, waits for posted writes, deregisters the pool."""
        self.incoming.stop()
        await self._mover.stop()

    def metadata(self) -> bytes:
        """Returns what a peer needs to reach this pool. Raises PreconditionError before `start`."""
        self._started()
        return self._metadata

    async def connect(self, agent: str, metadata: bytes, layout: str) -> None:
        """Introduces a peer. See `KvTransport.connect`.

        Also raises PreconditionError (MALFORMED_METADATA, METADATA_MISMATCH) and TransferError
        (PEER_LOST) while an earlier connection to the same agent is still closing.
        """
        memory = self._started()
        peer = decode_metadata(metadata)
        if peer.agent != agent:
            raise PreconditionError(
                f"metadata of {peer.agent} was given for {agent}", reason="METADATA_MISMATCH"
            )
        theirs = (layout, peer.memory.layout, peer.memory.block_bytes)
        if theirs != (memory.layout, memory.layout, memory.block_bytes):
            raise PreconditionError(
                f"KV blocks of {agent} are {theirs}, here they are "
                f"{(memory.layout, memory.block_bytes)}; both workers must serve one model",
                reason="LAYOUT_MISMATCH",
            )
        await self._mover.reply(self._mover.call(lambda: self._mover.connect(peer)))

    async def disconnect(self, agent: str) -> None:
        """Forgets a peer. Its transfers fail in both directions; posted writes end first."""
        self.incoming.fail_writer(agent)
        closed: Future[None] = self._mover.new_reply()
        self._mover.post(lambda: self._mover.disconnect(agent, closed))
        await self._mover.reply(closed)

    def is_connected(self, agent: str) -> bool:
        """Tells whether the peer was introduced and neither forgotten nor lost since."""
        return self._mover.peer(agent) is not None

    def fault(self) -> str:
        """Returns why nothing moves, empty while it does. See `KvTransport.fault`."""
        return self._mover.fault()

    def paths(self) -> Mapping[str, str]:
        """Returns how bytes get to each connected peer, by agent."""
        return self._mover.paths()

    @contextmanager
    def introducing(self) -> Iterator[None]:
        """See `KvTransport.introducing`."""
        with self.incoming.introducing():
            self._mover.wake()
            yield

    def open(self, destination: KvDestination) -> OutgoingTransfer:
        """Opens the writer's side. See `KvTransport.open`.

        Also raises PreconditionError (DESTINATION_RANGE) for blocks outside the peer's pool.
        """
        peer = self._mover.peer(destination.agent)
        if peer is None:
            raise PreconditionError(
                f"{destination.agent} was not introduced", reason="PEER_UNKNOWN"
            )
        count = peer.metadata.memory.block_count
        if not all(0 <= block < count for block in destination.block_ids):
            raise PreconditionError(
                f"transfer {destination.transfer_id} names blocks outside a pool of {count}",
                reason="DESTINATION_RANGE",
            )
        writes = OutgoingWrites(self._wire, peer, destination, self._timeout_s)
        return WiredOutgoing(self._mover, writes, destination)

    def expect(
        self, transfer_id: str, cached_tokens: int, block_ids: Sequence[int]
    ) -> KvDestination:
        """Opens the reader's side. See `KvTransport.expect` and `IncomingTransfers.expect`."""
        destination = self.incoming.expect(transfer_id, cached_tokens, block_ids)
        self._mover.wake()
        return destination

    async def verify(self, receipt: KvReceipt, expected_tokens: int, timeout_s: float) -> None:
        """Returns once the receipt is proven. See `KvTransport.verify`."""
        self._mover.wake()
        await self.incoming.verify(receipt, expected_tokens, timeout_s)

    def forget(self, transfer_id: str) -> None:
        """Ends the reader's side. See `KvTransport.forget`."""
        self.incoming.forget(transfer_id)

    def _started(self) -> PoolMemory:
        if self._memory is None:
            raise PreconditionError("the transport was not started", reason="NOT_STARTED")
        return self._memory
