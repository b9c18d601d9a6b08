"""Who holds which block: reference counts, what is free, and conservation."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from baton.kv.free import FreeBlocks


class PoolCounts(NamedTuple):
    """Blocks by state; `free + cached + owned == total` always holds. `leases` counts owners."""

    total: int
    free: int
    cached: int
    owned: int
    leases: int


@dataclass(slots=True)
class Lease:
    """What one owner holds: its block table, and blocks pinned only because its own hang below.

    `committed` blocks at the start of the table were offered to the prefix cache; `tail` is the
    cached block that ends them. A broken lease met a hash collision and commits no more.
    """

    root: int
    table: list[int] = field(default_factory=list)
    pins: list[int] = field(default_factory=list)
    committed: int = 0
    tail: int | None = None
    is_broken: bool = False


class BlockLedger:
    """Reference counts of all blocks and the leases that they come from. Not thread-safe.

    A block is owned while its count is above zero, else cached when it was marked so, else free.
    """

    def __init__(self, block_count: int) -> None:
        self._references = [0] * block_count
        self._is_cached = bytearray(block_count)
        self._free = FreeBlocks(block_count)
        self._owned = 0
        self._cached = 0
        self.leases: dict[str, Lease] = {}

    def counts(self) -> PoolCounts:
        """Returns the blocks by state."""
        return PoolCounts(
            len(self._references), len(self._free), self._cached, self._owned, len(self.leases)
        )

    def is_owned(self, block: int) -> bool:
        """Tells whether an owner holds the block."""
        return self._references[block] > 0

    def take_free(self, *, is_growth: bool = False) -> int:
        """Returns a free block, now owned once. There must be one. See baton/kv/free.py."""
        block = self._free.take_highest() if is_growth else self._free.take_lowest()
        self._references[block] = 1
        self._owned += 1
        return block

    def pin(self, block: int) -> None:
        """Adds a reference to a block that is owned or cached."""
        if self._references[block] == 0:
            assert self._is_cached[block]
            self._cached -= 1
            self._owned += 1
        self._references[block] += 1

    def unpin(self, block: int) -> bool:
        """Drops a reference; returns whether it was the last one."""
        assert self._references[block] > 0, f"block {block} released twice"
        self._references[block] -= 1
        if self._references[block]:
            return False
        self._owned -= 1
        if self._is_cached[block]:
            self._cached += 1
        else:
            self._free.add(block)
        return True

    def mark_cached(self, block: int) -> None:
        """From now on the block is cached, not free, when its last owner leaves."""
        assert self._references[block] > 0
        self._is_cached[block] = 1

    def evict(self, block: int) -> None:
        """Makes a cached block without owners free."""
        assert self._is_cached[block]
        assert self._references[block] == 0
        self._is_cached[block] = 0
        self._cached -= 1
        self._free.add(block)

    def check(self) -> None:
        """Asserts conservation from the counters alone; cheap enough for every change."""
        total, free, cached, owned, _ = self.counts()
        assert free + cached + owned == total, f"blocks lost: {self.counts()}"

    def audit(self) -> None:
        """Asserts that every count follows from the leases; visits every block."""
        held: Counter[int] = Counter()
        for lease in self.leases.values():
            held.update(lease.table)
            held.update(lease.pins)
        states = range(len(self._references))
        assert all(self._references[block] == held[block] for block in states)
        assert self._owned == len(held)
        assert self._cached == sum(1 for b in states if self._is_cached[b] and not held[b])
        free = list(self._free)
        assert len(free) == len(self._free), "the count of free blocks is wrong"
        _assert_disjoint(free, held, self._is_cached)
        self.check()


def _assert_disjoint(free: list[int], held: Iterable[int], is_cached: bytearray) -> None:
    assert not set(free) & set(held), "a block is free and owned"
    assert not any(is_cached[block] for block in free), "a block is free and cached"
