"""The host tier: evicted blocks of KV that wait in host memory, and which of its slots hold them.

A block that leaves the pool may be wanted again, and copying it back costs a small part of
computing it. Blocks move: a prefix is in the pool or in the tier, never in both. The pool evicts
leaves first, so a block enters the tier after everything below it; dropping the oldest first
therefore never leaves a block behind whose parent is gone.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Move(NamedTuple):
    """A block of the pool and a slot of the host memory."""

    block: int
    slot: int


class HostMemory(Protocol):
    """The bytes of the tier. Both methods return when the copies are done."""

    @property
    def slot_count(self) -> int:
        """How many blocks it holds."""
        ...

    def save(self, moves: Sequence[Move]) -> None:
        """Copies blocks of the pool into slots."""
        ...

    def restore(self, moves: Sequence[Move]) -> None:
        """Copies slots back into blocks of the pool."""
        ...


class HostCounts(NamedTuple):
    """Slots by state, and blocks moved each way since the start."""

    total: int
    used: int
    saved: int
    restored: int


@dataclass(frozen=True, slots=True)
class HostBlock:
    """A cached block in the tier; its tokens tell it from one that only shares the hash."""

    hash: int
    parent_hash: int
    tokens: bytes
    slot: int


class HostTier:
    """Which evicted blocks are in host memory, oldest first. Not thread-safe: the pool locks."""

    def __init__(self, slot_count: int) -> None:
        self._free = list(range(slot_count - 1, -1, -1))
        self._total = slot_count
        self._blocks: OrderedDict[int, HostBlock] = OrderedDict()
        self._held: dict[int, HostBlock] = {}
        self._saved = 0
        self._restored = 0

    def __iter__(self) -> Iterator[HostBlock]:
        """Yields all blocks, each after its parent."""
        return iter([*self._held.values(), *reversed(self._blocks.values())])

    def hashes(self) -> list[int]:
        """Returns the hashes of all blocks."""
        return [*self._blocks, *self._held]

    def counts(self) -> HostCounts:
        """Returns the slots by state."""
        return HostCounts(self._total, self._total - len(self._free), self._saved, self._restored)

    def find(self, block_hash: int, parent_hash: int, tokens: bytes) -> HostBlock | None:
        """Returns the block of these tokens below this parent, if it is here."""
        block = self._blocks.get(block_hash)
        if block is None or block.parent_hash != parent_hash or block.tokens != tokens:
            return None
        return block

    def admit(self, block_hash: int, parent_hash: int, tokens: bytes) -> "Admitted":
        """Takes a block in, dropping the oldest for it; a full tier of held blocks takes none."""
        self.discard(block_hash)
        dropped: int | None = None
        if not self._free:
            if not self._blocks:
                return Admitted(None, None)
            dropped, oldest = self._blocks.popitem(last=False)
            self._free.append(oldest.slot)
        slot = self._free.pop()
        self._blocks[block_hash] = HostBlock(block_hash, parent_hash, tokens, slot)
        self._saved += 1
        return Admitted(slot, dropped)

    def hold(self, blocks: Sequence[HostBlock]) -> None:
        """Keeps blocks from being dropped until they are `taken`."""
        for block in blocks:
            self._held[block.hash] = self._blocks.pop(block.hash)

    def taken(self, blocks: Sequence[HostBlock]) -> None:
        """Lets go of held blocks, which are in the pool again."""
        for block in blocks:
            self._free.append(self._held.pop(block.hash).slot)
        self._restored += len(blocks)

    def discard(self, block_hash: int) -> None:
        """Drops a block, for the pool holds its like now. Unknown ones are none."""
        block = self._blocks.pop(block_hash, None)
        if block is not None:
            self._free.append(block.slot)

    def audit(self) -> None:
        """Asserts that every slot is free or holds one block."""
        used = [block.slot for block in self]
        assert len(set(used)) == len(used), "two blocks share a slot"
        assert not set(used) & set(self._free), "a slot is free and used"
        assert len(used) + len(self._free) == self._total, "slots lost"


class Admitted(NamedTuple):
    """Where a block goes, None when it found no room; and the hash that was dropped for it."""

    slot: int | None
    dropped: int | None
