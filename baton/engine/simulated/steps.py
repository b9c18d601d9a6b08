"""The clock of a simulated engine: one timer per step, on the event loop.

Steps follow each other at the times the cost model says, not at the times the loop gets round to
them: a late timer runs the steps that are due, so the simulated speed survives a busy process.
"""

import asyncio
import math
import time
from collections import deque

from baton.blocks import blocks_for
from baton.engine.base import EngineSamples, Prefilled, PrefillSample, StepSample, TokenEvent
from baton.engine.simulated.batch import Batch, Chunk, Step
from baton.engine.simulated.busy import BusyShare
from baton.engine.simulated.job import Job, Phase
from baton.errors import BatonError

LONGEST_LAG_S = 0.5
"""A process that stood still for longer loses the time instead of making up for it."""

MAX_STEPS_PER_TURN = 64
MAX_SAMPLES = 64
_TIMER_GRAIN = 1000
"""uvloop's timers count milliseconds and round down; ours must not come early."""


class Steps:
    """Runs a batch's steps. Everything happens on the event loop, between two of its turns."""

    def __init__(self, batch: Batch, block_size: int) -> None:
        self.busy = BusyShare()
        self.batch = batch
        self._prefills: deque[PrefillSample] = deque(maxlen=MAX_SAMPLES)
        self._decodes: deque[StepSample] = deque(maxlen=MAX_SAMPLES)
        self._block_size = block_size
        self._step: Step | None = None
        self._began_s = 0.0
        self._ends_s = 0.0
        self._handle: asyncio.Handle | None = None

    @property
    def is_idle(self) -> bool:
        """Tells whether no step is under way."""
        return self._step is None

    def kick(self) -> None:
        """Looks at the jobs at the loop's next turn, unless a step is under way."""
        if self._step is None and self._handle is None:
            self._handle = asyncio.get_running_loop().call_soon(self._turn)

    def submit(self, job: Job) -> None:
        """Takes a job in."""
        self.batch.add(job)
        self.kick()

    def abort(self, job: Job) -> None:
        """Ends a job at once and gives its blocks back; again does nothing."""
        self.batch.remove(job)
        self.batch.release(job)
        self.kick()

    def take_samples(self) -> EngineSamples:
        """Returns what steps took since the last call, the newest ones."""
        samples = EngineSamples(tuple(self._prefills), tuple(self._decodes))
        self._prefills.clear()
        self._decodes.clear()
        return samples

    def stop(self, error: BatonError) -> None:
        """Ends all jobs with an error and the clock with them."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._step = None
        batch = self.batch
        for job in [*batch.waiting, *batch.prefilling, *batch.decoding]:
            batch.remove(job)
            batch.release(job)
            job.inbox.fail(error)

    def _turn(self) -> None:
        self._handle = None
        now_s = time.monotonic()
        for _ in range(MAX_STEPS_PER_TURN):
            start_s = now_s
            if self._step is not None:
                if self._ends_s > now_s:
                    break
                start_s = max(self._ends_s, now_s - LONGEST_LAG_S)
                self._complete(self._step)
            self._begin(start_s)
            if self._step is None:
                return
        self._arm(now_s)

    def _arm(self, now_s: float) -> None:
        delay_s = math.ceil(max(0.0, self._ends_s - now_s) * _TIMER_GRAIN) / _TIMER_GRAIN
        self._handle = asyncio.get_running_loop().call_later(delay_s, self._turn)

    def _begin(self, start_s: float) -> None:
        step = self._step = self.batch.next_step()
        if step is None:
            return
        self._began_s = start_s
        self._ends_s = start_s + step.seconds
        for chunk in step.chunks:
            if chunk.job.first_scheduled_s is None:
                chunk.job.first_scheduled_s = max(start_s, chunk.job.submitted_s)
            self._push(chunk.job)

    def _complete(self, step: Step) -> None:
        self._step = None
        self.busy.add(self._began_s, self._ends_s)
        if not step.chunks:
            sample = StepSample(len(step.decodes), step.resident_tokens, step.seconds)
            self._decodes.append(sample)
        for job in step.decodes:
            if job.phase is Phase.DECODING:
                job.computed = len(job.tokens)
                self._emit(job)
        for chunk in step.chunks:
            if chunk.job.phase is Phase.PREFILLING:
                self._complete_chunk(chunk)

    def _complete_chunk(self, chunk: Chunk) -> None:
        job = chunk.job
        job.prefill_s += chunk.seconds
        is_whole = self.batch.finish_chunk(chunk)
        self._push(job)
        if is_whole:
            if not job.is_prefilled:
                uncached = job.computed - job.cached_tokens
                self._prefills.append(PrefillSample(uncached, job.cached_tokens, job.prefill_s))
            self._emit(job)

    def _push(self, job: Job) -> None:
        """Pushes blocks that are complete: the full ones, and with the prompt the last one."""
        if job.feed is None:
            return
        if job.remaining:
            job.feed.push_until(job.blocks, job.computed // self._block_size)
        else:
            job.feed.push_until(job.blocks, blocks_for(job.computed, self._block_size))

    def _emit(self, job: Job) -> None:
        prefilled = None if job.is_prefilled else self._prefilled(job)
        token = job.next_token() if prefilled is None else prefilled.first_token
        job.is_prefilled = True
        # The next token follows with certainty, and the log of one is zero.
        logprobs = (0.0,) if job.request.sampling.logprobs else ()
        reason = None if job.feed is not None else job.finish_after(token)
        job.inbox.put(TokenEvent((token,), logprobs, reason, prefilled))
        if job.feed is not None:
            self.batch.remove(job)  # a transfer still reads its blocks
        elif reason is not None:
            self.batch.remove(job)
            self.batch.release(job)

    def _prefilled(self, job: Job) -> Prefilled:
        assert job.first_scheduled_s is not None
        return Prefilled(
            first_token=job.next_token(),
            logprob=0.0 if job.request.sampling.logprobs else None,
            receipt=None,
            queue_s=job.first_scheduled_s - job.submitted_s,
            compute_s=max(0.0, self._ends_s - job.first_scheduled_s),
            cached_tokens=job.cached_tokens,
        )
