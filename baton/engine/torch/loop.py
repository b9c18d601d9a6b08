"""The engine thread: takes commands, runs one step after the other, sends what came out."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import NamedTuple

import torch

from baton.blocks import blocks_for
from baton.engine.base import Prefilled, TokenEvent
from baton.engine.torch.job import Job, JobEnd, Phase
from baton.engine.torch.runner import StepRunner
from baton.engine.torch.samples import StepSamples
from baton.engine.torch.sampling import Choice
from baton.engine.torch.scheduler import Chunk, Scheduler
from baton.engine.torch.sizing import StepLoad, StepSizer, chunk_pairs
from baton.errors import BatonError, InternalError, UnavailableError

logger = logging.getLogger(__name__)

_FORWARD_FAILURES = (RuntimeError, ValueError, IndexError, MemoryError)
"""What a forward pass raises when it fails; torch's out-of-memory is a RuntimeError."""


Output = tuple[Job, TokenEvent | JobEnd]


class _Submit(NamedTuple):
    job: Job


class _Abort(NamedTuple):
    job: Job


class _Wake(NamedTuple):
    """Blocks may have become free."""


class _Stop(NamedTuple):
    pass


_Command = _Submit | _Abort | _Wake | _Stop


class BusyMeter:
    """The share of the last second that was spent in steps. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._steps: deque[tuple[float, float]] = deque()
        self._began_s: float | None = None

    def begin(self) -> None:
        """A step begins."""
        with self._lock:
            self._began_s = self._clock()

    def end(self) -> None:
        """The step is over."""
        with self._lock:
            assert self._began_s is not None
            now_s = self._clock()
            self._steps.append((self._began_s, now_s))
            self._began_s = None
            while self._steps[0][1] < now_s - 1.0:
                self._steps.popleft()

    def share(self) -> float:
        """Returns busy seconds per second, from 0 to 1."""
        with self._lock:
            now_s = self._clock()
            steps = list(self._steps)
            if self._began_s is not None:
                steps.append((self._began_s, now_s))
        since_s = now_s - 1.0
        return min(1.0, sum(max(0.0, end - max(start, since_s)) for start, end in steps))


class StepLoop:
    """Runs the scheduler's steps on a thread of its own; `run` is that thread.

    All outputs of a step leave in one call of `post`. Blocks of a job that only prefills stay
    leased when it ends, since a transfer still reads them; all others are released here.
    """

    def __init__(
        self,
        runner: StepRunner,
        scheduler: Scheduler,
        block_size: int,
        post: Callable[[Sequence[Output]], None],
        sizer: StepSizer | None = None,
    ) -> None:
        self.busy = BusyMeter()
        self.samples = StepSamples()
        self._runner = runner
        self._scheduler = scheduler
        self._block_size = block_size
        self._sizer = sizer
        self._post = post
        self._commands: SimpleQueue[_Command] = SimpleQueue()
        self._jobs: set[Job] = set()
        self._outputs: list[Output] = []
        self._is_idle = True
        self._lock = threading.Lock()
        self._has_ended = False

    @property
    def preemptions(self) -> int:
        """How often the scheduler took a running job's blocks."""
        return self._scheduler.preemptions

    def submit(self, job: Job) -> None:
        """Hands a job over. Raises UnavailableError when the engine has ended."""
        with self._lock:
            if self._has_ended:
                raise UnavailableError("the engine is not running", reason="ENGINE_DOWN")
            self._commands.put(_Submit(job))

    def abort(self, job: Job) -> None:
        """Ends a job between two steps; its JobEnd follows unless it is already on its way."""
        self._commands.put(_Abort(job))

    def wake(self) -> None:
        """Tells that blocks were released, so that waiting jobs are looked at again."""
        self._commands.put(_Wake())

    def wait_for_writes(self) -> None:
        """Returns once the KV of all finished steps is in memory; blocks, on any thread."""
        self._runner.wait_for_writes()

    def stop(self) -> None:
        """Ends all jobs and the thread after the step under way."""
        self._commands.put(_Stop())

    def run(self) -> None:
        """Runs until `stop`. If anything fails unexpectedly, all jobs fail with it."""
        reason = "ENGINE_STOPPED"
        try:
            with torch.inference_mode():
                while self._take_commands():
                    self._turn()
        except Exception:
            # The supervisor of the thread: nobody above could do more than tell all requests.
            logger.exception("engine thread died")
            reason = "ENGINE_DIED"
        self._end(reason)

    def _turn(self) -> None:
        chunks = self._scheduler.schedule(time.monotonic())
        self._is_idle = not chunks
        if chunks:
            self.busy.begin()
            self._step(chunks)
            self.busy.end()
        self._flush()

    def _take_commands(self) -> bool:
        """Applies all commands, waiting for one when there is nothing to do; False to stop."""
        while self._is_idle or not self._commands.empty():
            command = self._commands.get()
            self._is_idle = False
            if isinstance(command, _Stop):
                return False
            if isinstance(command, _Submit):
                self._jobs.add(command.job)
                self._scheduler.add(command.job)
            elif isinstance(command, _Abort) and command.job in self._jobs:
                self._retire(command.job)
        return True

    def _step(self, chunks: Sequence[Chunk]) -> None:
        now_s = time.monotonic()
        fed = [chunk.job for chunk in chunks if chunk.job.feed is not None]
        for chunk in chunks:
            if chunk.job.first_scheduled_s is None:
                chunk.job.first_scheduled_s = now_s
        self._push(fed)
        try:
            sampled = self._runner.run(chunks)
            self._runner.wait_for_writes()
        except _FORWARD_FAILURES as error:
            logger.exception("step failed")
            self._fail([chunk.job for chunk in chunks], error)
            return
        self._note(chunks, time.monotonic() - now_s)
        for chunk in chunks:
            self._scheduler.complete(chunk)
        if fed:
            self._push(fed)
        for job, choice in sampled:
            self._emit(job, choice)

    def _note(self, chunks: Sequence[Chunk], seconds: float) -> None:
        self.samples.note(chunks, seconds)
        if self._sizer is not None:
            self._sizer.learn(_load(chunks), seconds)

    def _push(self, jobs: Sequence[Job]) -> None:
        """Pushes blocks that are complete: the full ones, and with the prompt the last one."""
        for job in jobs:
            assert job.feed is not None
            if job.remaining:
                job.feed.push_until(job.blocks, job.computed // self._block_size)
            else:
                job.feed.push_until(job.blocks, blocks_for(job.computed, self._block_size))

    def _emit(self, job: Job, choice: Choice) -> None:
        prefilled = None if job.is_prefilled else self._prefilled(job, choice)
        job.is_prefilled = True
        job.tokens.append(choice.token)
        logprobs = () if choice.logprob is None else (choice.logprob,)
        finish = None if job.is_only_prefill else job.stop_rule.finish_after(choice.token)
        self._outputs.append((job, TokenEvent((choice.token,), logprobs, finish, prefilled)))
        if job.is_only_prefill or finish is not None:
            self._retire(job)

    def _prefilled(self, job: Job, choice: Choice) -> Prefilled:
        assert job.first_scheduled_s is not None
        return Prefilled(
            first_token=choice.token,
            logprob=choice.logprob,
            receipt=None,
            queue_s=job.first_scheduled_s - job.submitted_s,
            compute_s=time.monotonic() - job.first_scheduled_s,
            cached_tokens=job.cached_tokens,
        )

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        for job in jobs:
            message = f"the step failed: {type(error).__name__}: {error}"
            self._retire(job, InternalError(message, reason="STEP_FAILED"))

    def _retire(self, job: Job, error: BatonError | None = None) -> None:
        self._jobs.remove(job)
        self.samples.forget(job)
        self._scheduler.remove(job)
        if job.holds_lease and not job.is_only_prefill:
            self._scheduler.release(job)
        job.phase = Phase.ENDED
        self._outputs.append((job, JobEnd(error)))

    def _flush(self) -> None:
        if self._outputs:
            self._post(self._outputs)
            self._outputs = []

    def _end(self, reason: str) -> None:
        with self._lock:
            self._has_ended = True
        while not self._commands.empty():
            command = self._commands.get()
            if isinstance(command, _Submit):
                self._jobs.add(command.job)
                self._scheduler.add(command.job)
        for job in list(self._jobs):
            error = UnavailableError("the engine ended", reason=reason)
            try:
                self._retire(job, error)
            except (AssertionError, KeyError, ValueError):
                # The accounting may be what the thread died of; the request must end all the same.
                logger.exception("job %s was not released", job.owner)
                self._outputs.append((job, JobEnd(error)))
        self._flush()


def _load(chunks: Sequence[Chunk]) -> StepLoad:
    decodes = [chunk for chunk in chunks if chunk.job.phase is Phase.DECODING]
    prompts = [(c.start, c.count) for c in chunks if c.job.phase is Phase.PREFILLING]
    return StepLoad(
        len(decodes),
        sum(chunk.start for chunk in decodes),
        sum(count for _, count in prompts),
        chunk_pairs(prompts),
    )
