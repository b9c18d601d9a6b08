"""The books on reservations: each one is in one state, has a deadline there, and ends once.

    RESERVED ──expose──> EXPOSED ──the writer stopped──────────────> ended
        │                   │
        │                   ├──no word yet──> STOPPING ──it stopped──> ended
        │                   │                    │
        └──nobody knew──────┘                    └──no word──> QUARANTINED ──time is over──> ended

RESERVED blocks are known to nobody else. EXPOSED ones may be written by one prefill worker.
STOPPING waits for that worker's word that it stopped; QUARANTINED waits out that it may not have.
An end is one of: released, taken over by the engine, kept in its cache. Pure bookkeeping.
"""

import enum
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass


class LeaseState(enum.StrEnum):
    """Where a reservation stands."""

    RESERVED = "reserved"
    EXPOSED = "exposed"
    STOPPING = "stopping"
    QUARANTINED = "quarantined"


_NEXT: Mapping[LeaseState, frozenset[LeaseState]] = {
    LeaseState.RESERVED: frozenset({LeaseState.EXPOSED}),
    LeaseState.EXPOSED: frozenset({LeaseState.STOPPING, LeaseState.QUARANTINED}),
    LeaseState.STOPPING: frozenset({LeaseState.QUARANTINED}),
    LeaseState.QUARANTINED: frozenset(),
}


@dataclass(slots=True)
class _Lease:
    state: LeaseState
    deadline_s: float


class LeaseBook:
    """All live reservations of one decode worker, by transfer id.

    `deadlines_s` says how long each state may last by design. Outliving one frees nothing, since
    only the writer's word or the quarantine makes that safe; it is a fault that is counted.
    """

    def __init__(
        self,
        deadlines_s: Mapping[LeaseState, float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._deadlines_s = deadlines_s
        self._clock = clock
        self._leases: dict[str, _Lease] = {}

    def open(self, transfer_id: str) -> None:
        """Books a new reservation."""
        assert transfer_id not in self._leases, f"{transfer_id} is reserved twice"
        self._leases[transfer_id] = self._lease(LeaseState.RESERVED)

    def move(self, transfer_id: str, state: LeaseState) -> None:
        """Books the next state."""
        now = self._leases[transfer_id].state
        assert state in _NEXT[now], f"{transfer_id} cannot go from {now} to {state}"
        self._leases[transfer_id] = self._lease(state)

    def end(self, transfer_id: str) -> None:
        """Books the end; there is only one."""
        assert transfer_id in self._leases, f"{transfer_id} ends twice"
        del self._leases[transfer_id]

    def state(self, transfer_id: str) -> LeaseState | None:
        """Returns where a reservation stands, None after its end."""
        lease = self._leases.get(transfer_id)
        return None if lease is None else lease.state

    def counts(self) -> Mapping[LeaseState, int]:
        """Returns how many are in each state."""
        found = Counter(lease.state for lease in self._leases.values())
        return {state: found[state] for state in LeaseState}

    def overdue(self) -> list[str]:
        """Returns those that outlived the deadline of their state."""
        now_s = self._clock()
        return [name for name, lease in self._leases.items() if lease.deadline_s < now_s]

    def __len__(self) -> int:
        """Returns how many are live."""
        return len(self._leases)

    def _lease(self, state: LeaseState) -> _Lease:
        return _Lease(state, self._clock() + self._deadlines_s[state])
