"""A few workers out of many that a request could go to, found without looking at all of them.

A policy's cost grows with what a worker has to do and falls with what it holds of the prompt. So
the best worker is among the least loaded ones, or among those that hold more than these. Workers
stand in the order of their load, kept as they change; a request looks at the first few, and at the
least loaded of each group that holds an equal part of its prompt. Where loads are one number, as
the wait of prefill workers with equal costs, that is exact; where costs have several parts that do
not rise together, there is one order for each, and a worker that is second in all of them by much
may be missed.
"""

import random
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence
from itertools import islice

from baton.state.prefix_index import Holders

FIRST = 6
"""Workers that are looked at in each order, and of each group of holders."""

MOST_HOLDERS = 24
"""Holders of some of the prompt that are looked at, the longest parts first."""

_SEARCHED = 64

Keys = tuple[float, ...]
"""One worker's places in the orders; smaller is less loaded."""


class Standing:
    """Workers by name in the orders of their keys; each change costs the logarithm of their number.

    `width` is how many keys each worker has.
    """

    def __init__(self, width: int, rng: random.Random) -> None:
        self._rng = rng
        self._keys: dict[str, Keys] = {}
        self._orders: list[list[tuple[float, str]]] = [[] for _ in range(width)]

    def __len__(self) -> int:
        return len(self._keys)

    def put(self, name: str, keys: Keys) -> None:
        """Takes a worker in, or moves it to where it stands now."""
        before = self._keys.get(name)
        if before == keys:
            return
        self._keys[name] = keys
        for number, order in enumerate(self._orders):
            if before is not None:
                del order[bisect_left(order, (before[number], name))]
            insort(order, (keys[number], name))

    def drop(self, name: str) -> None:
        """Forgets a worker; again it does nothing."""
        keys = self._keys.pop(name, None)
        if keys is not None:
            for key, order in zip(keys, self._orders, strict=True):
                del order[bisect_left(order, (key, name))]

    def few(self, holders: Holders) -> list[str]:
        """Returns the workers worth a look, in no order that matters."""
        found: dict[str, None] = {}
        for order in self._orders:
            found.update(dict.fromkeys(self._first(order)))
        room = MOST_HOLDERS
        for depth, count in holders.groups():
            if room <= 0:
                break
            names = self._of_group(holders, depth, count)
            found.update(dict.fromkeys(names))
            room -= len(names)
        return list(found)

    def _first(self, order: Sequence[tuple[float, str]]) -> Iterable[str]:
        """Returns the least loaded; equal ones at random, or all requests would meet on one."""
        if len(order) <= FIRST:
            return [name for _, name in order]
        equal = bisect_right(order, (order[0][0], "\U0010ffff"))
        if equal <= FIRST:
            return [name for _, name in order[:FIRST]]
        return [order[place][1] for place in self._rng.sample(range(equal), FIRST)]

    def _of_group(self, holders: Holders, depth: int, count: int) -> list[str]:
        if count <= MOST_HOLDERS:
            keys = self._keys
            names = [name for name in holders.named(depth) if name in keys]
            return sorted(names, key=keys.__getitem__)[:FIRST]
        # A large group has members among the first, so that few steps find some.
        order = islice(self._orders[0], _SEARCHED)
        members = (name for _, name in order if holders.depth(name) == depth)
        return list(islice(members, FIRST))
