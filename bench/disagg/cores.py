"""Which cores belong to the two workers, which to all that surrounds them, and what they can."""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


@dataclass(frozen=True, slots=True)
class Cores:
    """Core i of `workers` is worker i's alone when there are `others` for router and client."""

    workers: tuple[int, ...]
    others: tuple[int, ...]

    def keep_to_workers(self) -> None:
        """Keeps this thread, and what it starts, to the workers' cores."""
        os.sched_setaffinity(0, self.workers)

    def keep_aside(self) -> None:
        """Keeps this thread, and what it starts, off the workers' cores where it can."""
        os.sched_setaffinity(0, self.others or self.workers)

    def keep_off_last_worker(self) -> None:
        """Keeps this thread, and what it starts, off the last worker's core in any case."""
        os.sched_setaffinity(0, self.others or self.workers[:1])


def divide(allowed: Iterable[int], siblings: Callable[[int], set[int]]) -> Cores:
    """Returns two real cores for the workers, and those that share no unit with them.

    `siblings` tells which cores are threads of one real core, that core's own number included.
    Where there is only one real core both workers are on it, and results say little.
    """
    free = sorted(allowed)
    workers: list[int] = []
    taken: set[int] = set()
    for core in free:
        if core not in taken and len(workers) < 2:
            workers.append(core)
            taken |= siblings(core)
    workers += [core for core in free if core not in workers][: 2 - len(workers)]
    taken |= set(workers)
    return Cores(tuple(workers), tuple(core for core in free if core not in taken))


def own_cores() -> Cores:
    """Returns how the cores of this process are divided."""
    return divide(os.sched_getaffinity(0), _siblings)


def has_tiles() -> bool:
    """Tells whether the cores multiply matrices of bfloat16 in tiles (AMX), faster than others."""
    info = Path("/proc/cpuinfo")
    return info.is_file() and " amx_bf16" in info.read_text()


def _siblings(core: int) -> set[int]:
    found = {core}
    with suppress(OSError):
        for part in Path(_TOPOLOGY.format(core)).read_text().strip().split(","):
            first, _, last = part.partition("-")
            found |= set(range(int(first), int(last or first) + 1))
    return found
