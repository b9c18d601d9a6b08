"""Free blocks, given out so that those of one prompt lie side by side.

A transfer moves adjacent blocks as one copy, and where none are, launching a copy for each costs a
GPU several times what moving them does. Prompts take their blocks at once and get the lowest
numbers; sequences that grow take one block now and then, between others, and get the highest, so
that they do not tear holes.
"""

import heapq
from collections.abc import Iterator


class FreeBlocks:
    """The free ones of `block_count` blocks, all of them at first. Not thread-safe.

    Two heaps with lazy deletion: a block taken from one end stays in the other end's heap until it
    comes up there.
    """

    def __init__(self, block_count: int) -> None:
        self._is_free = bytearray(b"\1" * block_count)
        self._lowest = list(range(block_count))
        self._highest = list(range(1 - block_count, 1))
        self._count = block_count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        return (block for block, is_free in enumerate(self._is_free) if is_free)

    def add(self, block: int) -> None:
        """A block became free."""
        assert not self._is_free[block], f"block {block} is freed twice"
        self._is_free[block] = 1
        self._count += 1
        heapq.heappush(self._lowest, block)
        heapq.heappush(self._highest, -block)
        if len(self._lowest) + len(self._highest) > 4 * len(self._is_free):
            self._drop_stale()

    def take_lowest(self) -> int:
        """Takes the free block of the lowest number. There must be one."""
        while not self._is_free[block := heapq.heappop(self._lowest)]:
            pass
        return self._taken(block)

    def take_highest(self) -> int:
        """Takes the free block of the highest number. There must be one."""
        while not self._is_free[block := -heapq.heappop(self._highest)]:
            pass
        return self._taken(block)

    def _taken(self, block: int) -> int:
        self._is_free[block] = 0
        self._count -= 1
        return block

    def _drop_stale(self) -> None:
        self._lowest = list(self)
        self._highest = [-block for block in reversed(self._lowest)]
