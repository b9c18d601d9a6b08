"""Which worker holds how long a prefix: the in-process replica that routers ask.

A hint, never a promise: an entry may be late, predicted or dropped to stay within bounds, and a
wrong one costs a cache miss on the worker, not a wrong answer. Each block's hash maps to a mask of
the workers that hold it, and one walk along a request's chain finds every worker's depth. The walk
is linear on purpose: galloping would need every holder of a block to hold its parents too, which
eviction, here or on the worker, does not keep true.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, repeat

from baton.engine.base import BlocksCleared, BlocksRemoved, BlocksStored, KvEvent
from baton.state.predictions import Predictions
from baton.state.slots import WorkerSlots

MAX_ENTRIES = 1 << 20
PREDICTION_TTL_S = 2.0
_MAX_SHARED_MASKS = 4096
_MIN_SWEEP = 64


class Holders:
    """How much of one prompt each worker holds: groups of workers with equal depths.

    Asking for some workers costs the number of groups, whatever the fleet's size.
    """

    def __init__(self, slots: WorkerSlots, groups: Sequence[tuple[int, int]]) -> None:
        self._slots = slots
        self._groups = groups

    def depth(self, worker: str) -> int:
        """Returns how many blocks from the start a worker holds."""
        bit = self._slots.bit(worker)
        for depth, mask in self._groups:
            if mask & bit:
                return depth
        return 0

    def groups(self) -> Iterator[tuple[int, int]]:
        """Yields how many workers hold how many blocks, the deepest first."""
        return ((depth, mask.bit_count()) for depth, mask in reversed(self._groups))

    def named(self, depth: int) -> Sequence[str]:
        """Returns the workers of the group of this depth."""
        mask = next((mask for found, mask in self._groups if found == depth), 0)
        return self._slots.names(mask)


class PrefixIndex:
    """Block hashes to workers, at most `max_entries` blocks; the longest untouched go first.

    Workers are named by their incarnation. A worker is known from `add` or its first `store`
    until `drop`. `now_s` is any monotonic clock and only matters to predictions.
    """

    def __init__(
        self, max_entries: int = MAX_ENTRIES, prediction_ttl_s: float = PREDICTION_TTL_S
    ) -> None:
        self._max_entries = max_entries
        self._crowded_at = max_entries - max_entries // 8
        self._masks: dict[int, int] = {}
        self._shared: dict[int, int] = {}
        self._slots = WorkerSlots()
        self._predictions = Predictions(prediction_ttl_s)
        self._sweep_keys: Iterator[int] = iter(())
        self._sweep_mask = 0

    def __len__(self) -> int:
        return len(self._masks)

    def __contains__(self, worker: str) -> bool:
        return worker in self._slots

    def add(self, worker: str) -> None:
        """Makes a worker known, so that `predict` takes it."""
        self._slots.assign(worker)

    def apply(self, worker: str, event: KvEvent) -> None:
        """Takes in one event of a worker's engine."""
        match event:
            case BlocksStored(hashes=hashes):
                self.store(worker, hashes)
            case BlocksRemoved(hashes=hashes):
                self.remove(worker, hashes)
            case BlocksCleared():
                self.clear(worker)

    def store(self, worker: str, hashes: Sequence[int]) -> None:
        """Notes that the worker holds these blocks."""
        bit = self._share(self._slots.assign(worker))
        masks = self._masks
        take = self._taker()
        if masks.keys().isdisjoint(hashes):
            masks.update(zip(hashes, repeat(bit)))
        else:
            for block in hashes:
                masks[block] = self._share(take(block, 0) | bit)
        self._sweep(_MIN_SWEEP + 2 * len(hashes))
        self._evict()

    def remove(self, worker: str, hashes: Iterable[int]) -> None:
        """Notes that the worker no longer holds these blocks."""
        bit = self._slots.bit(worker)
        for block in hashes:
            mask = self._masks.get(block, 0)
            if mask & bit:
                self._keep(block, mask ^ bit)

    def clear(self, worker: str) -> None:
        """Notes that the worker holds nothing; it stays known."""
        if worker in self._slots:
            self.drop(worker)
            self._slots.assign(worker)

    def drop(self, worker: str) -> None:
        """Forgets a worker at once; its entries are swept out with later stores."""
        self._predictions.forget(self._slots.retire(worker))

    def predict(self, worker: str, hashes: Sequence[int], now_s: float) -> None:
        """Expects the worker to hold these blocks soon; lasts for the prediction's life.

        Pass only the part that the worker did not match: that keeps it cheap. Unknown workers are
        ignored, so a dispatch that raced with a worker's end leaves nothing behind.
        """
        bit = self._slots.bit(worker)
        if bit and hashes:
            self._predictions.add(bit, hashes, now_s)

    def settle(self) -> None:
        """Works in what was predicted; call it once the request is on its way."""
        self._predictions.settle()

    def match(self, hashes: Sequence[int], now_s: float) -> dict[str, int]:
        """Returns how many blocks from the start of the chain each worker holds, if any."""
        slots = self._slots
        depths: dict[str, int] = {}
        for depth, mask in self._find(hashes, now_s):
            depths.update(zip(slots.names(mask), repeat(depth)))
        return depths

    def holders(self, hashes: Sequence[int], now_s: float) -> Holders:
        """Returns what `match` does without a name for each worker: for large fleets."""
        return Holders(self._slots, self._find(hashes, now_s))

    def _find(self, hashes: Sequence[int], now_s: float) -> list[tuple[int, int]]:
        self._predictions.expire(now_s)
        masks: Iterable[int] = map(self._masks.get, hashes, repeat(0))
        if self._predictions:
            masks = self._predictions.overlay(hashes, masks, now_s)
        groups = self._walk(masks)
        if groups and len(self._masks) > self._crowded_at:
            self._touch(hashes[: groups[-1][0]])
        return groups

    def _walk(self, masks: Iterable[int]) -> list[tuple[int, int]]:
        """Returns the depths at which workers drop out, with their masks, the shallowest first."""
        groups: list[tuple[int, int]] = []
        live = self._slots.live_mask
        last: int | None = None
        depth = 0
        for mask in masks:
            # Neighbours mostly share one mask object, which is quicker to see than to intersect.
            if mask is not last:
                held = live & mask
                if held != live:
                    if depth:
                        groups.append((depth, live ^ held))
                    if not held:
                        return groups
                    live = held
                last = mask
            depth += 1
        if depth and live:
            groups.append((depth, live))
        return groups

    def _taker(self) -> Callable[[int, int], int]:
        """Near the bound, taking an entry out makes it the youngest when it is put back."""
        return self._masks.pop if len(self._masks) > self._crowded_at else self._masks.get

    def _touch(self, hashes: Sequence[int]) -> None:
        masks = self._masks
        # Parents last: a chain whose start is gone is of no use, so it must go from its end.
        for block in reversed(hashes):
            mask = masks.pop(block, 0)
            if mask:
                masks[block] = mask

    def _share(self, mask: int) -> int:
        """Returns one object for equal masks: less memory, and `_walk` compares by identity."""
        if len(self._shared) > _MAX_SHARED_MASKS:
            self._shared.clear()
        return self._shared.setdefault(mask, mask)

    def _keep(self, block: int, mask: int) -> None:
        if mask:
            self._masks[block] = self._share(mask)
        else:
            del self._masks[block]

    def _evict(self) -> None:
        """Drops a batch of the longest untouched: finding the oldest is costly one by one."""
        surplus = len(self._masks) - self._max_entries
        if surplus > 0:
            count = max(surplus, self._max_entries // 32)
            for block in list(islice(self._masks, count)):
                del self._masks[block]

    def _sweep(self, limit: int) -> None:
        """Clears retired bits from up to `limit` entries; a full round frees them for reuse."""
        if not self._sweep_mask:
            if not self._slots.retired_mask:
                return
            self._sweep_mask = self._slots.retired_mask
            self._sweep_keys = iter(list(self._masks))
        seen = 0
        for block in islice(self._sweep_keys, limit):
            seen += 1
            mask = self._masks.get(block, 0)
            if mask & self._sweep_mask:
                self._keep(block, mask & ~self._sweep_mask)
        if seen < limit:
            self._slots.release(self._sweep_mask)
            self._sweep_mask = 0
