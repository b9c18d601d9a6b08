"""What the next simulated step computes, how long that takes, and what it leaves behind.

The same rules as the embedded engine's scheduler: continuous batching, every running decode first,
then chunks of prompts within the token budget, higher priority first, preemption when the pool is
full. Chunks cost what the cost model says, so that a prompt alone takes its predicted time.
"""

import heapq
from bisect import insort
from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

from baton.engine.simulated.job import Job, Phase
from baton.kv.pool import BlockPool
from baton.latency import WorkerCosts, prefill_features

_order = attrgetter("order")


class Chunk(NamedTuple):
    """`tokens` tokens of one prompt from position `start` on; they take `seconds`."""

    job: Job
    start: int
    tokens: int
    seconds: float


class Step(NamedTuple):
    """One engine step: sequences that decode one token each, and chunks of prompts."""

    decodes: Sequence[Job]
    chunks: Sequence[Chunk]
    resident_tokens: int
    seconds: float


class Batch:
    """The jobs of one engine and the blocks they hold."""

    def __init__(
        self, pool: BlockPool, costs: WorkerCosts, *, token_budget: int, max_running: int
    ) -> None:
        self._pool = pool
        self._costs = costs
        self._token_budget = token_budget
        # One token of each running decode must fit into a step.
        self._max_running = min(max_running, token_budget)
        self._waiting: list[Job] = []
        self._prefilling: list[Job] = []
        self._decoding: list[Job] = []
        self.preemptions = 0

    @property
    def waiting(self) -> Sequence[Job]:
        """Jobs that no step has looked at, or that lost their blocks."""
        return self._waiting

    @property
    def prefilling(self) -> Sequence[Job]:
        """Jobs whose prompt is being computed."""
        return self._prefilling

    @property
    def decoding(self) -> Sequence[Job]:
        """Jobs that generate."""
        return self._decoding

    def add(self, job: Job) -> None:
        """Takes a job in; it waits for its turn."""
        job.phase = Phase.WAITING
        insort(self._waiting, job, key=_order)

    def remove(self, job: Job) -> None:
        """Lets go of a job; its blocks stay its own until `release`. Again does nothing."""
        if job.phase not in (Phase.NEW, Phase.ENDED):
            self._list_of(job).remove(job)
        job.phase = Phase.ENDED

    def release(self, job: Job) -> None:
        """Caches what the job computed and gives its blocks back. Again does nothing."""
        if not job.holds_lease:
            return
        self._pool.commit(job.owner, job.tokens[: job.computed])
        self._pool.release(job.owner)
        job.holds_lease = False
        job.blocks = []
        job.computed = 0

    def next_step(self) -> Step | None:
        """Returns the next step, or None when nothing can run now."""
        preempted_before = self.preemptions
        decodes = [job for job in self._decoding[:] if self._grow(job)]
        # Preempting to keep decodes going and admitting new prompts at once would be a swing.
        # With nobody else running, who lost its blocks must take them back: nothing wakes it later.
        may_reserve = self.preemptions == preempted_before or not (self.prefilling or self.decoding)
        chunks = self._chunks(decodes, may_reserve)
        if not decodes and not chunks:
            return None
        resident_tokens = sum(len(job.tokens) for job in decodes)
        seconds = sum(chunk.seconds for chunk in chunks)
        if decodes:
            seconds += self._costs.step_s(len(decodes), resident_tokens)
        return Step(decodes, chunks, resident_tokens, seconds)

    def finish_chunk(self, chunk: Chunk) -> bool:
        """Notes that a chunk was computed; tells whether it was its prompt's last one."""
        job = chunk.job
        job.computed = chunk.start + chunk.tokens
        self._pool.commit(job.owner, job.tokens[: job.computed])
        if job.remaining:
            return False
        self._move(job, Phase.DECODING)
        return True

    def _chunks(self, decodes: list[Job], may_reserve: bool) -> list[Chunk]:
        """Fills what the decodes leave of the budget; may admit further decodes."""
        chunks: list[Chunk] = []
        budget = self._token_budget - len(decodes)
        candidates = heapq.merge(self._prefilling[:], self._waiting[:], key=_order)
        for job in candidates:
            if budget == 0:
                break
            if job.phase is Phase.WAITING and not self._admit(job, may_reserve):
                # Nobody overtakes a job that waits for blocks; those that hold theirs pass.
                may_reserve = False
                continue
            if job.phase is Phase.DECODING:
                decodes.append(job)  # its prompt came from a peer
                budget -= 1
                continue
            count = min(job.remaining, budget)
            budget -= count
            chunks.append(Chunk(job, job.computed, count, self._chunk_s(job, count)))
        return chunks

    def _admit(self, job: Job, may_reserve: bool) -> bool:
        if len(self._prefilling) + len(self._decoding) >= self._max_running:
            return False
        if job.holds_lease:
            # Its KV came from a peer and was verified.
            self._pool.commit(job.owner, job.tokens[: job.computed])
        elif not may_reserve or not self._reserve(job):
            return False
        is_ready = job.remaining == 1 and job.computed > 0 and job.is_prefilled
        self._move(job, Phase.DECODING if is_ready else Phase.PREFILLING)
        return True

    def _reserve(self, job: Job) -> bool:
        # Room for the decodes' next blocks, or admitting would only preempt at once.
        grant = self._pool.reserve(
            job.owner, job.tokens, job.request.cache_salt, spare_blocks=len(self._decoding)
        )
        if grant is None:
            return False
        job.blocks = list(grant.block_ids)
        job.computed = grant.cached_tokens
        if not job.is_prefilled:
            job.cached_tokens = grant.cached_tokens
        job.holds_lease = True
        return True

    def _grow(self, job: Job) -> bool:
        """Gets a running job the block for its next token; False when it was preempted."""
        if job.phase is not Phase.DECODING:
            return False
        if len(job.tokens) <= len(job.blocks) * self._pool.block_size:
            return True
        while (fresh := self._pool.grow(job.owner, len(job.tokens))) is None:
            victim = self._victim()
            self._preempt(victim)
            if victim is job:
                return False
        job.blocks += fresh
        return True

    def _victim(self) -> Job:
        running = heapq.merge(self._decoding, self._prefilling, key=_order)
        return [job for job in running if job.feed is None][-1]

    def _preempt(self, job: Job) -> None:
        self.preemptions += 1
        self._list_of(job).remove(job)
        self.release(job)
        self.add(job)

    def _chunk_s(self, job: Job, count: int) -> float:
        one, tokens, pairs = prefill_features(count, job.computed)
        # The fixed part is a prompt's, not a chunk's; the others add up over its chunks.
        fixed = 0.0 if job.has_begun else one
        job.has_begun = True
        return self._costs.prefill.predict((fixed, tokens, pairs))

    def _move(self, job: Job, phase: Phase) -> None:
        self._list_of(job).remove(job)
        job.phase = phase
        insort(self._list_of(job), job, key=_order)

    def _list_of(self, job: Job) -> list[Job]:
        match job.phase:
            case Phase.WAITING:
                return self._waiting
            case Phase.PREFILLING:
                return self._prefilling
            case _:
                return self._decoding
