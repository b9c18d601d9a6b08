"""How much of the machine's time went to processes that are not part of a benchmark."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_STAT = Path("/proc/stat")


class _Reading(NamedTuple):
    """Clock ticks since boot: all, those that were used, and those of the processes watched."""

    whole: int
    used: int
    own: int


class Meter:
    """Watches some processes between `begin` and `end`, any number of times."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._began: _Reading | None = None
        self._whole = 0
        self._foreign = 0

    def begin(self) -> None:
        """Starts to count."""
        self._began = self._read()

    def end(self) -> None:
        """Ceases to count."""
        now, began = self._read(), self._began
        if now is None or began is None:
            return
        self._whole += now.whole - began.whole
        self._foreign += (now.used - began.used) - (now.own - began.own)

    @property
    def others(self) -> float | None:
        """The share of all cores' time that others used; None where it was not to be read."""
        return max(0, self._foreign) / self._whole if self._whole else None

    def _read(self) -> _Reading | None:
        if not _STAT.is_file():
            return None
        with _STAT.open() as lines:
            ticks = [int(word) for word in lines.readline().split()[1:9]]
        idle = ticks[3] + ticks[4]
        return _Reading(sum(ticks), sum(ticks) - idle, sum(map(_ticks_of, self._pids)))


def _ticks_of(pid: int) -> int:
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(after_name[11]) + int(after_name[12])
