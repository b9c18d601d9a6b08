"""The KV pool of a simulated worker: the rules of `baton.kv.pool`, by block hash alone.

A simulated prompt has no token ids, and hash ids in a trace do not collide, so a block is its
hash. A chain's parents are used whenever its blocks are and are put back after them, so that the
least recently used entry is always a leaf: the order of eviction is that of the real pool.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from baton.blocks import blocks_for

BlocksChanged = Callable[[Sequence[int]], None]


class Lease:
    """Blocks of one job: `pinned` blocks of its chain in the cache, `private` ones without hash."""

    __slots__ = ("hashes", "pinned", "private")

    def __init__(self, hashes: Sequence[int], pinned: int, private: int) -> None:
        self.hashes = hashes
        self.pinned = pinned
        self.private = private

    @property
    def blocks(self) -> int:
        """Blocks this job keeps from others."""
        return self.pinned + self.private


class SimPool:
    """Counts blocks and remembers which prefixes are cached.

    `on_stored` and `on_removed` are told what changed in the cache, as the mesh's KV events do.
    """

    def __init__(
        self, blocks: int, block_tokens: int, on_stored: BlocksChanged, on_removed: BlocksChanged
    ) -> None:
        self.total = blocks
        self.block_tokens = block_tokens
        self.free = blocks
        self.leases = 0
        self._on_stored = on_stored
        self._on_removed = on_removed
        self._used: dict[int, int] = {}
        self._evictable: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Blocks that are free or could be evicted."""
        return self.free + len(self._evictable)

    @property
    def cached(self) -> int:
        """Blocks that nobody holds and that keep a prefix."""
        return len(self._evictable)

    def match(self, hashes: Sequence[int], tokens: int) -> int:
        """Returns how many tokens at the start of a prompt are cached; its last one never is."""
        return self._walk(hashes, tokens) * self.block_tokens

    def reserve(self, hashes: Sequence[int], tokens: int, spare: int = 0) -> Lease | None:
        """Pins the cached prefix and takes blocks for the rest; None without room for it."""
        pinned = self._walk(hashes, tokens)
        prefix = hashes[:pinned]
        fresh = blocks_for(tokens, self.block_tokens) - pinned
        revived = sum(block in self._evictable for block in prefix)
        if self.available - revived < fresh + spare:
            return None
        for block in prefix:
            self._pin(block)
        self._take(fresh)
        self.leases += 1
        return Lease(hashes, pinned, fresh)

    def grow(self, lease: Lease, table_blocks: int, tokens: int) -> int | None:
        """Extends a table of `table_blocks` to `tokens` tokens; returns the blocks added."""
        missing = blocks_for(tokens, self.block_tokens) - table_blocks
        if missing <= 0:
            return 0
        if self.available < missing:
            return None
        self._take(missing)
        lease.private += missing
        return missing

    def commit(self, lease: Lease, tokens: int) -> None:
        """Makes the full blocks of the first `tokens` tokens reusable."""
        end = min(tokens // self.block_tokens, len(lease.hashes))
        if end <= lease.pinned:
            return
        stored = []
        for block in lease.hashes[lease.pinned : end]:
            if block in self._used or block in self._evictable:
                # Somebody else computed it first; this job's own copy goes when the job ends.
                self._pin(block)
            else:
                self._used[block] = 1
                lease.private -= 1
                stored.append(block)
        lease.pinned = end
        if stored:
            self._on_stored(stored)

    def release(self, lease: Lease) -> None:
        """Takes everything back; what was committed stays cached."""
        for block in reversed(lease.hashes[: lease.pinned]):
            holders = self._used[block] - 1
            if holders:
                self._used[block] = holders
            else:
                del self._used[block]
                self._evictable[block] = None
        self.free += lease.private
        lease.private = lease.pinned = 0
        self.leases -= 1

    def check(self) -> None:
        """Asserts that nobody holds a block any more: all are free or cached."""
        assert not self._used
        assert self.leases == 0
        assert self.free + len(self._evictable) == self.total

    def _walk(self, hashes: Sequence[int], tokens: int) -> int:
        depth = 0
        for block in hashes[: (tokens - 1) // self.block_tokens]:
            if block not in self._used and block not in self._evictable:
                break
            depth += 1
        return depth

    def _pin(self, block: int) -> None:
        self._used[block] = self._used.get(block, 0) + 1
        self._evictable.pop(block, None)

    def _take(self, count: int) -> None:
        if self.free < count:
            removed = [self._evictable.popitem(last=False)[0] for _ in range(count - self.free)]
            self.free += len(removed)
            self._on_removed(removed)
        self.free -= count
