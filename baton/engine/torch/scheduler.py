"""What the next step computes: continuous batching with chunked prefill. Pure Python, no torch."""

import heapq
from array import array
from bisect import insort
from dataclasses import dataclass
from operator import attrgetter

from baton.engine.torch.job import Job, Phase
from baton.engine.torch.sizing import StepSizer
from baton.kv.pool import BlockPool

_order = attrgetter("order")


@dataclass(frozen=True, slots=True)
class Chunk:
    """`count` consecutive tokens of one job, from position `start`."""

    job: Job
    start: int
    count: int

    @property
    def samples(self) -> bool:
        """Whether the job's next token is sampled from this chunk's last position."""
        return self.start + self.count == len(self.job.tokens)


class Scheduler:
    """Chooses chunks: every running decode first, then prefill within the token budget.

    With a `sizer`, prompts get the rest of a step that its decodes' target leaves, and no job that
    will decode here starts when that would take decodes beyond it, unless it has waited too long.

    Higher priority goes first, then first come. When the pool cannot hold a decode's next token,
    the youngest job of the lowest priority gives its blocks back and computes again later. Jobs
    whose blocks are being read by a transfer are never taken from.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        token_budget: int,
        max_running: int,
        sizer: StepSizer | None = None,
    ) -> None:
        self._pool = pool
        self._token_budget = token_budget
        self._sizer = sizer
        # One token of each running decode must fit into a step.
        self._max_running = min(max_running, token_budget)
        self._waiting: list[Job] = []
        self._running: list[Job] = []
        self.preemptions = 0

    def jobs(self) -> list[Job]:
        """Returns all jobs, running ones first."""
        return self._running + self._waiting

    def add(self, job: Job) -> None:
        """Takes a job in; it waits for its turn."""
        insort(self._waiting, job, key=_order)

    def remove(self, job: Job) -> None:
        """Lets go of a job that ended; its blocks are the caller's."""
        (self._waiting if job.phase is Phase.WAITING else self._running).remove(job)

    def schedule(self, now_s: float) -> list[Chunk]:
        """Returns the next step, decodes first; empty when nothing can run now."""
        preempted_before = self.preemptions
        self._start_received(now_s)
        chunks = self._decode_chunks()
        budget = self._prompt_budget(chunks)
        # Who lost its blocks just now does not take them back from the others at once; but with no
        # others left it must, since an empty step puts the engine to sleep.
        may_reserve = self.preemptions == preempted_before or not self._running
        prefilling = [job for job in self._running if job.phase is Phase.PREFILLING]
        for job in heapq.merge(prefilling, self._waiting[:], key=_order):
            if budget == 0:
                break
            if job.phase is Phase.WAITING and not self._admit(job, now_s, may_reserve):
                # Nobody overtakes a job that waits for blocks, or it might wait for ever. Jobs
                # that already hold theirs pass.
                may_reserve = False
                continue
            count = min(job.remaining, budget)
            budget -= count
            chunks.append(Chunk(job, job.computed, count))
        return chunks

    def complete(self, chunk: Chunk) -> None:
        """Notes that a chunk was computed; its full blocks become reusable."""
        job = chunk.job
        job.computed = chunk.start + chunk.count
        if job.phase is Phase.PREFILLING:
            self._pool.commit(job.owner, job.tokens[: job.computed])
            if chunk.samples:
                job.phase = Phase.DECODING

    def release(self, job: Job) -> None:
        """Caches what the job computed and gives its blocks back."""
        self._pool.commit(job.owner, job.tokens[: job.computed])
        self._pool.release(job.owner)
        job.holds_lease = False
        job.blocks = array("q")
        job.computed = 0

    def _prompt_budget(self, decodes: list[Chunk]) -> int:
        """Returns how many tokens of prompts the step takes beside its decodes."""
        budget = self._token_budget - len(decodes)
        if self._sizer is None:
            return budget
        resident = sum(chunk.start for chunk in decodes)
        context = max((j.computed for j in self._running if j.phase is Phase.PREFILLING), default=0)
        return min(budget, self._sizer.prompt_tokens(len(decodes), resident, context))

    def _start_received(self, now_s: float) -> None:
        """Starts jobs that came with their KV, before anybody counts what decodes leave of a step.

        A prompt beside them would else get a step's whole time, since none of them runs yet.
        """
        for job in self._waiting[:]:
            if job.holds_lease:
                self._admit(job, now_s, may_reserve=False)

    def _decode_chunks(self) -> list[Chunk]:
        # Growing one may preempt others. Victims come from the end of the same order, so none of
        # them has its chunk yet.
        return [
            Chunk(job, job.computed, 1)
            for job in self._running[:]
            if job.phase is Phase.DECODING and self._grow(job)
        ]

    def _grow(self, job: Job) -> bool:
        if len(job.tokens) <= len(job.blocks) * self._pool.block_size:
            return True
        while (fresh := self._pool.grow(job.owner, len(job.tokens))) is None:
            victim = next(job for job in reversed(self._running) if not job.is_only_prefill)
            self._preempt(victim)
            if victim is job:
                return False
        job.blocks.extend(fresh)
        return True

    def _preempt(self, job: Job) -> None:
        self.preemptions += 1
        self._running.remove(job)
        self.release(job)
        job.phase = Phase.WAITING
        self.add(job)

    def _admit(self, job: Job, now_s: float, may_reserve: bool) -> bool:
        if len(self._running) >= self._max_running:
            return False
        if job.holds_lease:
            # Its KV came from a peer and was verified.
            self._pool.commit(job.owner, job.tokens[: job.computed])
        elif not may_reserve or not self._has_time(job, now_s) or not self._reserve(job):
            return False
        self._waiting.remove(job)
        job.phase = Phase.DECODING if job.remaining == 1 and job.computed else Phase.PREFILLING
        insort(self._running, job, key=_order)
        return True

    def _has_time(self, job: Job, now_s: float) -> bool:
        """Tells whether steps stay within their target with one more job that will decode.

        Alone it always may, and a prompt whose answer is decoded elsewhere takes nobody's time.
        """
        if self._sizer is None or not self._running or job.is_only_prefill:
            return True
        resident = sum(len(running.tokens) for running in self._running) + len(job.tokens)
        return self._sizer.has_room(len(self._running) + 1, resident, now_s - job.submitted_s)

    def _reserve(self, job: Job) -> bool:
        # Room for the decodes' next blocks, or admitting would only preempt at once.
        spare = sum(running.phase is Phase.DECODING for running in self._running)
        grant = self._pool.reserve(
            job.owner, job.tokens, job.request.cache_salt, spare_blocks=spare
        )
        if grant is None:
            return False
        job.blocks = array("q", grant.block_ids)
        job.computed = grant.cached_tokens
        if not job.is_prefilled:
            job.cached_tokens = grant.cached_tokens
        job.holds_lease = True
        return True
