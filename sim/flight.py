"""One request on its way through the simulated mesh."""

from collections.abc import Iterator

from services.admission.ledger import Permit
from services.router.policy import Decision
from sim.engine.job import Job
from sim.engine.links import Transfer
from sim.engine.pool import Lease
from sim.views import Sight
from sim.workload import SimRequest


class Flight:
    """The state of one request between its arrival and its one outcome."""

    __slots__ = (
        "at_decode",
        "candidates",
        "credited",
        "decision",
        "decode",
        "failed",
        "first_token_s",
        "index",
        "is_prefilled",
        "lease",
        "local_job",
        "permit",
        "prefill",
        "pushed",
        "reason",
        "remote_job",
        "request",
        "transfer",
    )

    def __init__(self, index: int, request: SimRequest) -> None:
        self.index = index
        self.request = request
        self.permit: Permit | None = None
        self.decision: Decision | None = None
        self.decode: Sight | None = None
        self.prefill: Sight | None = None
        self.credited: Sight | None = None
        self.candidates: Iterator[int] = iter(())
        self.failed: set[str] = set()
        self.reason = ""
        self.lease: Lease | None = None
        self.at_decode = 0
        self.transfer: Transfer | None = None
        self.remote_job: Job | None = None
        self.local_job: Job | None = None
        self.pushed = 0
        self.is_prefilled = False
        self.first_token_s: float | None = None

    @property
    def order(self) -> tuple[int, int]:
        """Where the request stands in a worker's queue."""
        return -self.request.priority, self.index
