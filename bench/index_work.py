"""A request trace as work for a prefix index: look-ups, and what workers store and remove.

Each request is placed where its prefix is longest unless that worker got much more than its share;
each worker holds a bounded number of blocks and drops the longest unused chains, ends first.
"""

import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from baton.blocks import chain_hash

TRACE_BLOCK_TOKENS = 512
"""Tokens that one hash id of the trace stands for."""

_SHARE = 1.25


class Operation(NamedTuple):
    """What one request does: a look-up, then changes at the worker that got it."""

    chain: Sequence[int]
    worker: int
    parent: int | None
    stored: Sequence[int]
    removed: Sequence[int]


@dataclass(frozen=True, slots=True)
class IndexWork:
    """The operations of a replay, and how many (block, worker) entries are left at its end."""

    workers: int
    operations: Sequence[Operation]
    held: Sequence[Sequence[int]]

    @property
    def entries(self) -> int:
        """Blocks held at the end, each counted once per worker."""
        return sum(map(len, self.held))


class _Cache:
    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.blocks: OrderedDict[int, None] = OrderedDict()

    def match(self, chain: Sequence[int]) -> int:
        """Returns how many blocks from the start are held."""
        for depth, block in enumerate(chain):
            if block not in self.blocks:
                return depth
        return len(chain)

    def use(self, chain: Sequence[int]) -> Sequence[int]:
        """Holds the whole chain from now on; returns what had to go."""
        for block in reversed(chain):
            self.blocks[block] = None
            self.blocks.move_to_end(block)
        surplus = max(0, len(self.blocks) - self._capacity)
        return [self.blocks.popitem(last=False)[0] for _ in range(surplus)]


def read_chains(trace: Path, requests: int, block_tokens: int) -> Iterator[list[int]]:
    """Yields the block hashes of each request's prompt, in order of arrival."""
    per_id = TRACE_BLOCK_TOKENS // block_tokens
    known: dict[int, list[int]] = {}
    with trace.open() as lines:
        for _, line in zip(range(requests), lines, strict=False):
            row = json.loads(line)
            full = int(row["input_length"]) // block_tokens
            chain: list[int] = []
            for hash_id in row["hash_ids"]:
                if hash_id not in known:
                    known[hash_id] = _sub_blocks(hash_id, per_id)
                chain += known[hash_id]
            yield chain[:full]


def make_work(chains: Sequence[Sequence[int]], workers: int, capacity: int) -> IndexWork:
    """Places all requests on `workers` workers that hold `capacity` blocks each."""
    caches = [_Cache(capacity) for _ in range(workers)]
    given = [0] * workers
    operations = []
    for number, chain in enumerate(chains):
        worker, depth = _place(caches, given, chain, number)
        given[worker] += 1
        removed = caches[worker].use(chain)
        parent = chain[depth - 1] if depth else None
        operations.append(Operation(chain, worker, parent, chain[depth:], removed))
    return IndexWork(workers, operations, [list(cache.blocks) for cache in caches])


def _place(
    caches: Sequence[_Cache], given: Sequence[int], chain: Sequence[int], number: int
) -> tuple[int, int]:
    limit = _SHARE * (number / len(caches)) + 1
    best, best_depth = min(range(len(given)), key=given.__getitem__), -1
    for worker, cache in enumerate(caches):
        if given[worker] <= limit and chain and chain[0] in cache.blocks:
            depth = cache.match(chain)
            if (depth, -given[worker]) > (best_depth, -given[best]):
                best, best_depth = worker, depth
    return best, max(best_depth, 0) if best_depth >= 0 else caches[best].match(chain)


def _sub_blocks(hash_id: int, count: int) -> list[int]:
    """Returns the hashes of the blocks that one hash id of the trace stands for."""
    hashes = []
    parent = hash_id
    for place in range(count):
        parent = chain_hash(parent, place.to_bytes(4, "little") + hash_id.to_bytes(8, "little"))
        hashes.append(parent)
    return hashes
