"""One request on its way through the simulated mesh."""

from collections.abc import Iterator

from services.admission.ledger import Permit
from services.router.policy import Decision
from sim.engine.job import Job
from sim.engine.links import Transfer
from sim.engine.pool import Lease
from sim.observe import LiveRequest, Stage
from sim.outcome import Ending, Outcome
from sim.views import Sight
from sim.workload import SimRequest


class Flight:
    """The state of one request between its arrival and its one outcome."""

    __slots__ = (
        "at_decode",
        "candidates",
        "credited",
        "credited_tokens",
        "decision",
        "decode",
        "failed",
        "first_token_s",
        "index",
        "lease",
        "local_job",
        "local_tokens",
        "permit",
        "prefill",
        "prefilled_s",
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
        self.credited_tokens = 0
        self.candidates: Iterator[int] = iter(())
        self.failed: set[str] = set()
        self.reason = ""
        self.lease: Lease | None = None
        self.at_decode = 0
        self.transfer: Transfer | None = None
        self.remote_job: Job | None = None
        self.local_job: Job | None = None
        self.local_tokens = 0
        self.pushed = 0
        self.prefilled_s: float | None = None
        self.first_token_s: float | None = None

    @property
    def order(self) -> tuple[int, int]:
        """Where the request stands in a worker's queue."""
        return -self.request.priority, self.index

    def live(self) -> LiveRequest:
        """Returns how far the request is."""
        request = self.request
        stage, prompt_left, generated = Stage.WAITING, request.prompt_tokens, 0
        job = self.local_job or self.remote_job
        if self.decode is not None:
            stage = Stage.PREFILLING
        if job is not None:
            prompt_left = max(0, request.prompt_tokens - max(job.computed, job.cached))
        if self.first_token_s is not None and self.decode is not None:
            stage, prompt_left, generated = Stage.DECODING, 0, 1
            if self.local_job is not None:
                generated = self.decode.worker.generated(self.local_job)
        computing = self.prefill if self.prefill is not None else self.decode
        return LiveRequest(
            arrival_s=request.arrival_s,
            priority=request.priority,
            tenant=request.tenant,
            stage=stage,
            prompt_tokens=request.prompt_tokens,
            prompt_left_tokens=prompt_left,
            output_tokens=request.output_tokens,
            generated_tokens=generated,
            first_token_s=self.first_token_s,
            prefill_worker="" if computing is None else computing.name,
            decode_worker="" if self.decode is None else self.decode.name,
        )

    def outcome(self, ended_s: float) -> Outcome:
        """Returns what became of the request, which was served."""
        request, job, decode = self.request, self.local_job, self.decode
        assert job is not None
        assert decode is not None
        assert self.first_token_s is not None
        later_tokens = request.output_tokens - 1
        prefill = self.prefill if self.remote_job is not None else None
        return Outcome(
            request,
            Ending.SERVED,
            self.reason,
            ended_s,
            ttft_s=self.first_token_s - request.arrival_s,
            tpot_s=(ended_s - self.first_token_s) / later_tokens if later_tokens else None,
            cached_tokens=job.cached,
            vain_tokens=max(0, self.at_decode - job.cached) if prefill is not None else 0,
            is_remote=prefill is not None,
            prefill_worker=(prefill or decode).name,
            decode_worker=decode.name,
            computed_tokens=self.computed_tokens,
        )

    @property
    def computed_tokens(self) -> int:
        """Prompt tokens that were computed for it, wherever."""
        jobs = (self.remote_job, self.local_job)
        return sum(job.prefilled_tokens for job in jobs if job is not None)
