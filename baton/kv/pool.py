"""The block pool: which blocks of KV are free, cached or owned, and by whom.

Bookkeeping only; the bytes live with the engine. Blocks that hold a computed prefix form trees:
a cached block names its parent block, so that two prompts share what they have in common. Reuse
walks from the root and compares token ids, because a 64-bit hash can collide. Eviction takes
the least recently used leaf, so that no cached block ever loses its ancestors. With host memory
below it (baton/kv/host.py), evicted blocks move there and come back when a prompt wants them; they
count as cached all the while, and only what the host memory drops is reported as removed.
"""

import heapq
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from baton.blocks import blocks_for, chain_hash, token_bytes
from baton.engine.base import BlocksCleared, BlocksRemoved, BlocksStored, KvEvent
from baton.kv.host import HostBlock, HostCounts, HostMemory, HostTier, Move
from baton.kv.ledger import BlockLedger, Lease, PoolCounts

MAX_EVENTS = 16384
"""Events kept for a reader that is away; beyond, it gets one snapshot instead."""


class Grant(NamedTuple):
    """Blocks for a prompt, in order; `cached_tokens` at the start need no computing."""

    block_ids: tuple[int, ...]
    cached_tokens: int


@dataclass(slots=True)
class _CachedBlock:
    hash: int
    parent_hash: int
    parent: int | None
    tokens: bytes
    children: int = 0
    last_use: int = 0


class _Prefix(NamedTuple):
    """The cached start of a prompt: blocks of the pool, then such as are in host memory."""

    blocks: list[int]
    in_host: list[HostBlock]


class BlockPool:
    """Paged KV bookkeeping with a prefix cache. Thread-safe; every call is short.

    `root_of` gives the parent hash of a first block by cache salt. Owners are any unique strings
    and hold their blocks from `reserve` to `release`. With `reuse_prefix` off nothing is cached.
    """

    def __init__(
        self,
        block_count: int,
        block_size: int,
        root_of: Callable[[str], int],
        *,
        reuse_prefix: bool = True,
        max_events: int = MAX_EVENTS,
        host: HostMemory | None = None,
    ) -> None:
        self.block_size = block_size
        self._root_of = root_of
        self._reuse_prefix = reuse_prefix
        self._max_events = max_events
        self._lock = threading.Lock()
        self._ledger = BlockLedger(block_count)
        self._cached: dict[int, _CachedBlock] = {}
        self._by_hash: dict[int, int] = {}
        self._leaves: list[tuple[int, int]] = []
        self._clock = 0
        self._events: list[KvEvent] = []
        self._lost_events = False
        self._host = host
        self._tier = HostTier(0 if host is None else host.slot_count)

    def match(self, input_ids: Sequence[int], cache_salt: str = "") -> int:
        """Returns how many tokens at the start are cached; pins nothing.

        At least the last token is never counted, since somebody has to compute its logits.
        """
        with self._lock:
            found = self._walk(input_ids, self._root_of(cache_salt))
            return (len(found.blocks) + len(found.in_host)) * self.block_size

    def reserve(
        self, owner: str, input_ids: Sequence[int], cache_salt: str = "", *, spare_blocks: int = 0
    ) -> Grant | None:
        """Gives `owner` the cached prefix and fresh blocks for the rest of `input_ids`.

        Returns None, and changes nothing, when that would leave fewer than `spare_blocks` blocks
        that are free or evictable. `owner` must hold nothing yet.
        """
        root = self._root_of(cache_salt)
        with self._lock:
            assert owner not in self._ledger.leases, f"{owner} reserves twice"
            prefix, in_host = self._walk(input_ids, root)
            fresh = blocks_for(len(input_ids), self.block_size) - len(prefix)
            revived = sum(not self._ledger.is_owned(block) for block in prefix)
            if self._available() < fresh + revived + spare_blocks:
                return None
            for block in prefix:
                self._ledger.pin(block)
            self._tier.hold(in_host)
            table = prefix + self._take(fresh)
            self._restore(in_host, table, len(prefix))
            cached = len(prefix) + len(in_host)
            tail = table[cached - 1] if cached else None
            self._ledger.leases[owner] = Lease(root, table, [], cached, tail)
            self._ledger.check()
            return Grant(tuple(table), cached * self.block_size)

    def grow(self, owner: str, tokens: int) -> tuple[int, ...] | None:
        """Extends the owner's table to hold `tokens` tokens; returns the new blocks.

        Returns None, and changes nothing, when the pool cannot give them now.
        """
        with self._lock:
            lease = self._ledger.leases[owner]
            missing = blocks_for(tokens, self.block_size) - len(lease.table)
            if missing <= 0:
                return ()
            if self._available() < missing:
                return None
            fresh = self._take(missing, is_growth=True)
            lease.table += fresh
            self._ledger.check()
            return tuple(fresh)

    def commit(self, owner: str, input_ids: Sequence[int]) -> None:
        """Makes the owner's full blocks reusable; the KV of all `input_ids` must be there.

        May be called again as the sequence grows; `input_ids` starts at the sequence's start.
        """
        with self._lock:
            lease = self._ledger.leases[owner]
            full = len(input_ids) // self.block_size
            if not self._reuse_prefix or full <= lease.committed:
                return
            self._commit_from(lease, input_ids[lease.committed * self.block_size :])
            self._ledger.check()

    def release(self, owner: str) -> None:
        """Takes everything back from `owner`; what it committed stays cached."""
        with self._lock:
            lease = self._ledger.leases.pop(owner)
            self._clock += 1
            for block in lease.table + lease.pins:
                if self._ledger.unpin(block) and block in self._cached:
                    self._cached[block].last_use = self._clock
                    self._push_leaf(block)
            self._ledger.check()

    def table(self, owner: str) -> tuple[int, ...]:
        """Returns the owner's blocks in order."""
        with self._lock:
            return tuple(self._ledger.leases[owner].table)

    def counts(self) -> PoolCounts:
        """Returns the blocks by state."""
        with self._lock:
            return self._ledger.counts()

    def take_events(self) -> list[KvEvent]:
        """Returns what changed in the cache since the last call, in order."""
        with self._lock:
            events = self._snapshot() if self._lost_events else self._events
            self._events, self._lost_events = [], False
            return events

    def cached_hashes(self) -> list[int]:
        """Returns the hashes of all blocks that `match` can find."""
        with self._lock:
            return [*self._by_hash, *self._tier.hashes()]

    def host_counts(self) -> HostCounts:
        """Returns the slots of the host memory by state."""
        with self._lock:
            return self._tier.counts()

    def audit(self) -> None:
        """Asserts every invariant, visiting every block. For tests and after faults."""
        with self._lock:
            self._ledger.audit()
            children = dict.fromkeys(self._cached, 0)
            for entry in self._cached.values():
                if entry.parent is not None:
                    children[entry.parent] += 1
                    assert self._cached[entry.parent].hash == entry.parent_hash
            for block, entry in self._cached.items():
                assert entry.children == children[block]
                assert self._by_hash[entry.hash] == block
            assert len(self._by_hash) == len(self._cached)
            self._tier.audit()
            assert not self._by_hash.keys() & set(self._tier.hashes()), "a block is in two tiers"

    def _walk(self, input_ids: Sequence[int], root: int) -> "_Prefix":
        size = self.block_size
        prefix: list[int] = []
        in_host: list[HostBlock] = []
        parent, parent_hash = None, root
        # One block at a time: most walks end early, and the last token is never looked up.
        for start in range(0, len(input_ids) - size, size):
            tokens = token_bytes(input_ids[start : start + size])
            block_hash = chain_hash(parent_hash, tokens)
            block = None if in_host else self._by_hash.get(block_hash)
            if block is not None and self._is_same(block, parent, root, tokens):
                prefix.append(block)
                parent = block
            elif (below := self._tier.find(block_hash, parent_hash, tokens)) is not None:
                in_host.append(below)
            else:
                break
            parent_hash = block_hash
        return _Prefix(prefix, in_host)

    def _restore(self, in_host: Sequence[HostBlock], table: Sequence[int], first: int) -> None:
        """Brings blocks back from host memory, into the table's blocks from `first` on."""
        if not in_host:
            return
        assert self._host is not None
        blocks = table[first : first + len(in_host)]
        self._host.restore([Move(b, it.slot) for b, it in zip(blocks, in_host, strict=True)])
        self._tier.taken(in_host)
        parent = table[first - 1] if first else None
        for block, it in zip(blocks, in_host, strict=True):
            self._insert(block, _CachedBlock(it.hash, it.parent_hash, parent, it.tokens))
            parent = block

    def _is_same(self, block: int, parent: int | None, root: int, tokens: bytes) -> bool:
        entry = self._cached[block]
        if entry.tokens != tokens or entry.parent != parent:
            return False
        return parent is not None or entry.parent_hash == root

    def _commit_from(self, lease: Lease, input_ids: Sequence[int]) -> None:
        """Caches the full blocks of `input_ids` below the lease's tail."""
        step = 4 * self.block_size
        data = token_bytes(input_ids)
        stored: list[int] = []
        first_parent = 0
        for start in range(0, len(data) - step + 1, step):
            if lease.is_broken:
                break
            tokens = data[start : start + step]
            parent_hash = lease.root if lease.tail is None else self._cached[lease.tail].hash
            block_hash = chain_hash(parent_hash, tokens)
            twin = self._by_hash.get(block_hash)
            if twin is None:
                first_parent = first_parent if stored else parent_hash
                stored.append(block_hash)
                self._tier.discard(block_hash)
                block = lease.table[lease.committed]
                self._insert(block, _CachedBlock(block_hash, parent_hash, lease.tail, tokens))
                lease.tail = block
                lease.committed += 1
            else:
                self._adopt(lease, twin, tokens)
        if stored:
            self._record(BlocksStored(first_parent, tuple(stored)))

    def _adopt(self, lease: Lease, twin: int, tokens: bytes) -> None:
        """Continues the lease's chain below a block that somebody else computed first.

        Blocks of this lease may come to hang below the twin, so it is pinned: it must not be
        evicted before them. A twin that only shares the hash ends what this lease can commit.
        """
        if not self._is_same(twin, lease.tail, lease.root, tokens):
            lease.is_broken = True
            return
        self._ledger.pin(twin)
        lease.pins.append(twin)
        lease.tail = twin
        lease.committed += 1

    def _insert(self, block: int, entry: _CachedBlock) -> None:
        self._ledger.mark_cached(block)
        self._cached[block] = entry
        self._by_hash[entry.hash] = block
        if entry.parent is not None:
            self._cached[entry.parent].children += 1

    def _available(self) -> int:
        counts = self._ledger.counts()
        return counts.free + counts.cached

    def _take(self, count: int, *, is_growth: bool = False) -> list[int]:
        removed: list[int] = []
        saved: dict[int, int] = {}
        while self._ledger.counts().free < count:
            block, entry = self._evict()
            slot, dropped = self._tier.admit(entry.hash, entry.parent_hash, entry.tokens)
            if dropped is not None:
                removed.append(dropped)
            if slot is None:
                removed.append(entry.hash)
            else:
                # A small tier may give one slot away twice; the later block is the one to keep.
                saved[slot] = block
        if saved:
            assert self._host is not None
            self._host.save([Move(block, slot) for slot, block in saved.items()])
        if removed:
            self._record(BlocksRemoved(tuple(removed)))
        return [self._ledger.take_free(is_growth=is_growth) for _ in range(count)]

    def _evict(self) -> tuple[int, _CachedBlock]:
        """Evicts the least recently used leaf; returns it and what it held."""
        while True:
            last_use, block = heapq.heappop(self._leaves)
            if self._is_leaf(block) and self._cached[block].last_use == last_use:
                break
        entry = self._cached.pop(block)
        del self._by_hash[entry.hash]
        self._ledger.evict(block)
        if entry.parent is not None:
            self._cached[entry.parent].children -= 1
            self._push_leaf(entry.parent)
        return block, entry

    def _is_leaf(self, block: int) -> bool:
        entry = self._cached.get(block)
        return entry is not None and entry.children == 0 and not self._ledger.is_owned(block)

    def _push_leaf(self, block: int) -> None:
        if not self._is_leaf(block):
            return
        heapq.heappush(self._leaves, (self._cached[block].last_use, block))
        # Entries of blocks that were pinned since are stale; drop them before they pile up.
        if len(self._leaves) > 64 + 2 * self._ledger.counts().total:
            self._leaves = [
                (self._cached[leaf].last_use, leaf) for leaf in self._cached if self._is_leaf(leaf)
            ]
            heapq.heapify(self._leaves)

    def _record(self, event: KvEvent) -> None:
        if len(self._events) < self._max_events:
            self._events.append(event)
        else:
            self._lost_events = True

    def _snapshot(self) -> list[KvEvent]:
        """Returns the whole cache as events: a block's parent was cached before it."""
        events: list[KvEvent] = [BlocksCleared()]
        events += [
            BlocksStored(entry.parent_hash, (entry.hash,)) for entry in self._cached.values()
        ]
        events += [BlocksStored(below.parent_hash, (below.hash,)) for below in self._tier]
        return events
