"""Who is in the fleet, as plain values: what FleetView keeps and policies read."""

import asyncio
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from baton.state.records import StatsReport, WorkerRecord, WorkerRole, WorkerStats

logger = logging.getLogger(__name__)

STALE_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One live worker. `stats_at_s` is when its figures were taken, at the reader's clock.

    Figures are stale by their age alone; what they say, saturated or not, is another question.
    """

    record: WorkerRecord
    stats: WorkerStats | None = None
    stats_at_s: float = -math.inf

    def age_s(self, now_s: float) -> float:
        """Returns the age of the figures; infinite when there are none."""
        return now_s - self.stats_at_s

    def is_stale(self, now_s: float, stale_after_s: float = STALE_AFTER_S) -> bool:
        """Tells whether the figures are missing or too old to decide by."""
        return self.age_s(now_s) > stale_after_s


class Members:
    """The live processes by worker id; `generation` counts joins and leaves."""

    def __init__(self) -> None:
        self._views: dict[str, WorkerView] = {}
        self._by_role: dict[WorkerRole, list[WorkerView]] = {}
        self._places: dict[str, int] = {}
        self._changed = asyncio.Event()
        self.generation = 0

    def __iter__(self) -> Iterator[WorkerView]:
        return iter(self._views.values())

    def get(self, worker_id: str) -> WorkerView | None:
        """Returns the live process of that id, if there is one."""
        return self._views.get(worker_id)

    def of_role(self, role: WorkerRole) -> Sequence[WorkerView]:
        """Returns the live processes of a role by worker id.

        The sequence follows the processes' figures until somebody joins or leaves.
        """
        if role not in self._by_role:
            found = [view for view in self if view.record.role is role]
            found.sort(key=lambda view: view.record.worker_id)
            self._by_role[role] = found
            self._places |= {view.record.worker_id: at for at, view in enumerate(found)}
        return self._by_role[role]

    def join(self, record: WorkerRecord) -> None:
        """Takes a process in; another incarnation of the same worker id is replaced."""
        old = self._views.get(record.worker_id)
        if old is not None and old.record == record:
            return
        self._views[record.worker_id] = WorkerView(record)
        self._bump("joined", record, "")

    def leave(self, worker_id: str, why: str) -> None:
        """Lets a process go; unknown ids are ignored."""
        view = self._views.pop(worker_id, None)
        if view is not None:
            self._bump("left", view.record, why)

    def leave_incarnation(self, incarnation: str, why: str) -> None:
        """Lets a process go unless its worker id has a newer incarnation."""
        for view in list(self._views.values()):
            if view.record.incarnation == incarnation:
                self.leave(view.record.worker_id, why)

    def report(self, report: StatsReport, taken_at_s: float) -> None:
        """Takes figures in; `taken_at_s` is at the reader's clock. Older ones are ignored."""
        view = self._views.get(report.worker_id)
        if view is None or view.record.incarnation != report.incarnation:
            return
        if view.stats is not None and view.stats.taken_at_s >= report.stats.taken_at_s:
            return
        newer = WorkerView(view.record, report.stats, taken_at_s)
        self._views[report.worker_id] = newer
        in_order = self._by_role.get(view.record.role)
        if in_order is not None:
            in_order[self._places[report.worker_id]] = newer

    async def wait_change(self, generation: int) -> int:
        """Returns the current `generation` once it differs from the one given."""
        while self.generation == generation:
            await self._changed.wait()
        return self.generation

    def _bump(self, what: str, record: WorkerRecord, why: str) -> None:
        logger.info(
            "worker %s worker=%s incarnation=%s role=%s %s",
            what,
            record.worker_id,
            record.incarnation,
            record.role,
            why,
        )
        self._by_role.clear()
        self._places.clear()
        self.generation += 1
        self._changed.set()
        self._changed = asyncio.Event()
