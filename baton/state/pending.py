"""Cache changes that wait to be published: in order, merged where they touch, bounded."""

from collections import deque
from collections.abc import Iterable

from baton.state.kv_wire import CacheChange, ChangeKind


class PendingChanges:
    """A bounded queue; `overflowed` says that changes were lost and only a full set helps."""

    def __init__(self, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._runs: deque[tuple[ChangeKind, list[int]]] = deque()
        self._blocks = 0
        self.overflowed = False

    def __bool__(self) -> bool:
        return bool(self._runs)

    def add(self, changes: Iterable[CacheChange]) -> None:
        """Appends changes; beyond the bound drops all and sets `overflowed`."""
        for change in changes:
            if self.overflowed:
                return
            self._append(change)

    def _append(self, change: CacheChange) -> None:
        if change.kind is ChangeKind.CLEARED:
            # What waited is undone by this one.
            self.clear()
        elif not change.hashes:
            return
        if self._runs and self._runs[-1][0] is change.kind:
            self._runs[-1][1].extend(change.hashes)
        else:
            self._runs.append((change.kind, list(change.hashes)))
        self._blocks += len(change.hashes)
        if self._blocks > self._max_blocks or len(self._runs) > self._max_blocks:
            self.clear()
            self.overflowed = True

    def take(self, max_blocks: int) -> list[CacheChange]:
        """Removes and returns changes from the front, with at most `max_blocks` hashes."""
        taken: list[CacheChange] = []
        room = max_blocks
        while self._runs and (room > 0 or not self._runs[0][1]):
            kind, hashes = self._runs.popleft()
            if len(hashes) > room:
                self._runs.appendleft((kind, hashes[room:]))
                hashes = hashes[:room]
            taken.append(CacheChange(kind, tuple(hashes)))
            room -= len(hashes)
        self._blocks -= max_blocks - room
        return taken

    def clear(self) -> None:
        """Forgets everything that waits."""
        self._runs.clear()
        self._blocks = 0
        self.overflowed = False
