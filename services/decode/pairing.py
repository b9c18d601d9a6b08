"""What all pairs with prefill workers have in common, however KV gets from one to the other.

A pair belongs to one incarnation of the prefill worker. One that cannot be made is left alone for
a time that doubles with each failure.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from baton.errors import BatonError, UnavailableError
from baton.state.fleet import FleetView
from baton.state.records import WorkerRole

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
SWEEP_EVERY_S = 1.0
BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0


@dataclass(frozen=True, slots=True)
class PrefillWorker:
    """A prefill worker at one address in one life."""

    worker_id: str
    incarnation: str
    address: str

    def check_agent(self, agent: str) -> None:
        """Raises UnavailableError (INCARNATION_CHANGED) when another one answers there."""
        if agent != self.incarnation:
            raise UnavailableError(
                f"{self.address} is now {agent}, not {self.incarnation}",
                reason="INCARNATION_CHANGED",
            )


def prefill_workers(fleet: FleetView) -> Sequence[PrefillWorker]:
    """Returns those that are there now."""
    return [
        PrefillWorker(view.record.worker_id, view.record.incarnation, view.record.address)
        for view in fleet.workers(WorkerRole.PREFILL)
    ]


@dataclass(slots=True)
class Backoff:
    """How long a pair is left alone. `failures` counts those since it was last proven."""

    failures: int = 0
    retry_at_s: float = 0.0

    @property
    def is_waiting(self) -> bool:
        """Tells whether it is too early to try again."""
        return time.monotonic() < self.retry_at_s

    def wait(self, seconds: float) -> None:
        """Leaves the pair alone for a time that is nobody's fault."""
        self.retry_at_s = time.monotonic() + seconds

    def book(self, worker: PrefillWorker, error: BatonError) -> None:
        """Notes a failure."""
        self.failures += 1
        backoff_s = min(MAX_BACKOFF_S, BACKOFF_S * 2 ** (self.failures - 1))
        self.wait(backoff_s)
        logger.warning(
            "pair failed worker=%s reason=%s again_in_s=%g: %s",
            worker.worker_id,
            error.reason,
            backoff_s,
            error.message,
        )


def quarantined(worker: PrefillWorker) -> UnavailableError:
    """Returns what is raised for a pair that is left alone."""
    return UnavailableError(
        f"the pair with {worker.worker_id} failed and is tried again later",
        reason="PEER_QUARANTINED",
    )
