"""Blocks that a worker will hold soon: a router's own dispatches, each valid for a short time."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import NamedTuple

MAX_BLOCKS = 1 << 18
"""Blocks of all live predictions together; beyond it the oldest end early."""

_ENDED_AT_ONCE = 2
_MOST_ADDED = 64
"""Predictions that wait to be worked in where nobody looks."""


class _Holders:
    """Who is expected to hold a block until when; shared by all blocks predicted together."""

    __slots__ = ("expires_s", "mask")

    def __init__(self, expires_s: dict[int, float]) -> None:
        self.expires_s = expires_s
        self.mask = 0
        for bit in expires_s:
            self.mask |= bit

    def forget(self, bit: int) -> None:
        """Takes one worker out."""
        if self.expires_s.pop(bit, None) is not None:
            self.mask &= ~bit

    def expire(self, now_s: float) -> None:
        """Takes out all whose time is up."""
        for bit in [bit for bit, expires_s in self.expires_s.items() if expires_s <= now_s]:
            self.forget(bit)


class _Prediction(NamedTuple):
    expires_s: float
    hashes: Sequence[int]
    holders: Sequence[_Holders]


class Predictions:
    """Predicted block holders by worker bit. Times given never go backwards."""

    def __init__(self, ttl_s: float, max_blocks: int = MAX_BLOCKS) -> None:
        self._ttl_s = ttl_s
        self._max_blocks = max_blocks
        self._by_hash: dict[int, _Holders] = {}
        self._queue: deque[_Prediction] = deque()
        self._queued_blocks = 0
        self._added: list[tuple[int, Sequence[int], float]] = []

    def __len__(self) -> int:
        return len(self._by_hash)

    def add(self, bit: int, hashes: Sequence[int], now_s: float) -> None:
        """Expects the worker of `bit` to hold `hashes` for `ttl_s` from now.

        It is worked in by `settle` or when somebody next looks: whoever adds it is just sending a
        request off.
        """
        self._added.append((bit, hashes, now_s))
        if len(self._added) > _MOST_ADDED:
            self.settle()

    def settle(self) -> None:
        """Works in what was added, at a moment when nobody waits for it."""
        added, self._added = self._added, []
        for prediction in added:
            self._work_in(*prediction)

    def _work_in(self, bit: int, hashes: Sequence[int], now_s: float) -> None:
        expires_s = now_s + self._ttl_s
        if self._by_hash.keys().isdisjoint(hashes):
            holders = [_Holders({bit: expires_s})]
            self._by_hash.update(zip(hashes, repeat(holders[0])))
        else:
            holders = self._merge(bit, hashes, expires_s)
        self._queue.append(_Prediction(expires_s, hashes, holders))
        self._queued_blocks += len(hashes)
        while self._queued_blocks > self._max_blocks:
            self._end_oldest(now_s, early=True)

    def _merge(self, bit: int, hashes: Sequence[int], expires_s: float) -> list[_Holders]:
        alone = _Holders({bit: expires_s})
        merged: dict[int, _Holders] = {}
        for block in hashes:
            old = self._by_hash.get(block)
            holders = alone
            if old is not None and old.mask & ~bit:
                holders = merged.get(id(old)) or _Holders({**old.expires_s, bit: expires_s})
                # Also under its own id: a chain may name one block twice.
                merged[id(old)] = merged[id(holders)] = holders
            self._by_hash[block] = holders
        return [alone, *merged.values()]

    def expire(self, now_s: float) -> None:
        """Ends predictions whose time is up: all, where none is left, or else the oldest.

        Each request adds two at most and asks once, so two at a time keep up, and no request pays
        for the many that a burst left behind: `overlay` leaves out what is not ended yet.
        """
        self.settle()
        queue = self._queue
        if queue and queue[-1].expires_s <= now_s:
            self._by_hash.clear()
            queue.clear()
            self._queued_blocks = 0
            return
        for _ in range(_ENDED_AT_ONCE):
            if not queue or queue[0].expires_s > now_s:
                return
            self._end_oldest(now_s, early=False)

    def _end_oldest(self, now_s: float, *, early: bool) -> None:
        ended = self._queue.popleft()
        self._queued_blocks -= len(ended.hashes)
        until_s = ended.expires_s if early else now_s
        for holders in ended.holders:
            holders.expire(until_s)
        own, by_hash = ended.holders[0], self._by_hash
        own_is_over = not own.mask
        for block in ended.hashes:
            current = by_hash.get(block)
            if current is own:
                if own_is_over:
                    del by_hash[block]
            elif current is not None:
                # A later prediction of the same block carries this one's holder on.
                current.expire(until_s)
                if not current.mask:
                    del by_hash[block]

    def forget(self, bit: int) -> None:
        """Ends all predictions for one worker."""
        self.settle()
        for prediction in self._queue:
            for holders in prediction.holders:
                holders.forget(bit)

    def overlay(self, hashes: Sequence[int], masks: Iterable[int], now_s: float) -> Iterator[int]:
        """Yields each mask with the predicted holders of its block added."""
        last: _Holders | None = None
        for mask, holders in zip(masks, map(self._by_hash.get, hashes), strict=True):
            if holders is None:
                yield mask
                continue
            if holders is not last:
                holders.expire(now_s)
                last = holders
            yield mask | holders.mask
