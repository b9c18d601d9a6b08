"""A simulated worker: the embedded engine's scheduler, in steps whose time the cost model tells.

The rules are those of `baton.engine.torch.scheduler`: running decodes first, then prefill chunks
within the token budget, by priority and arrival; nobody overtakes a job that waits for blocks; a
decode that cannot grow takes the blocks of the youngest. Steps that only decode are simulated many
at a time, up to the next end or growth of a sequence, and cut at a step's end when a job arrives:
the result is that of single steps, at a cost that does not depend on tokens or batch size.
"""

import heapq
import math
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple, Protocol

from sim.costs.model import StepCosts
from sim.engine.events import Clock
from sim.engine.job import Job, Order, Phase
from sim.engine.pool import SimPool
from sim.engine.streams import Streams, order_of


class WorkerEvents(Protocol):
    """Who is told what happens to jobs."""

    def scheduled(self, job: Job) -> None:
        """Its first chunk is about to be computed; `job.cached` tokens were in the cache."""
        ...

    def computed(self, job: Job) -> None:
        """One more chunk of a job that only prefills is computed; all when none remains."""
        ...

    def first_token(self, job: Job) -> None:
        """A local prompt is computed and its first token sampled."""
        ...

    def finished(self, job: Job) -> None:
        """The last token is out; blocks are given back."""
        ...


class _Chunk(NamedTuple):
    job: Job
    tokens: int


class _Run(NamedTuple):
    """Decode steps under way: `steps` of `sequences` sequences since `start_s`."""

    start_s: float
    steps: int
    version: int


class SimWorker:
    """One engine. All times come from `clock`; whatever changes puts `index` into `changed`."""

    def __init__(
        self,
        index: int,
        clock: Clock,
        costs: StepCosts,
        pool: SimPool,
        events: WorkerEvents,
        *,
        token_budget: int,
        max_running: int,
        changed: set[int],
    ) -> None:
        self.index = index
        self.pool = pool
        self.costs = costs
        self.token_budget = token_budget
        self.busy_s = 0.0
        self.prefill_tokens = 0
        self.preemptions = 0
        self.preempted_tokens = 0
        self.backlog_tokens = 0
        self.backlog_pairs = 0.0
        self.step_started_s: float | None = None
        self._changed = changed
        self._clock = clock
        self._events = events
        self._max_running = min(max_running, token_budget)
        self._waiting: list[tuple[Order, Job]] = []
        self._delivered: list[tuple[Order, Job]] = []
        self._prefilling: list[Job] = []
        self._streams = Streams(pool.block_tokens)
        self._run: _Run | None = None
        self._version = 0
        self._was_preempted = False

    @property
    def queued(self) -> int:
        """Jobs that wait for their turn."""
        return len(self._waiting) + len(self._delivered)

    @property
    def prefilling(self) -> int:
        """Jobs whose prompt is being computed."""
        return len(self._prefilling)

    @property
    def decoding(self) -> int:
        """Jobs that generate."""
        return len(self._streams)

    @property
    def backlog_marginal_s(self) -> float:
        """What the prompt tokens left to compute take, without the constants of steps."""
        _, per_token, per_pair = self.costs.prefill
        return per_token * self.backlog_tokens + per_pair * self.backlog_pairs

    @property
    def decode_steps(self) -> int:
        """Steps so far in which something decoded."""
        return self._streams.steps

    @property
    def decode_tokens(self) -> int:
        """Tokens so far that such steps made."""
        return self._streams.tokens

    @property
    def resident_tokens(self) -> int:
        """Tokens that the generating jobs hold together, when one last joined, grew or ended."""
        return self._streams.resident_tokens

    def generated(self, job: Job) -> int:
        """Returns how many tokens of a job are out."""
        return self._streams.generated(job, self._steps_done())

    def streams(self) -> Iterator[tuple[int, int]]:
        """Yields the length of each generating job's answer and how much of it is left."""
        return self._streams.lengths(self._steps_done())

    def submit(self, job: Job) -> None:
        """Takes in a job whose prompt is to be computed here."""
        heapq.heappush(self._waiting, (job.order, job))
        cached = self.pool.match(job.request.hashes, job.tokens)
        self._set_backlog(job, job.tokens - cached, cached)
        self.wake()

    def deliver(self, job: Job) -> None:
        """Takes in a job whose prompt's KV is here and whose first token is known."""
        job.tokens += 1
        job.computed = job.request.prompt_tokens
        job.left -= 1
        heapq.heappush(self._delivered, (job.order, job))
        self.wake()

    def release(self, job: Job) -> None:
        """Gives the blocks of a job that only prefilled back; waiting jobs may fit now."""
        assert job.lease is not None
        self.pool.release(job.lease)
        job.lease = None
        self.wake()

    def wake(self) -> None:
        """Looks at waiting jobs again, since blocks were given back or a job came.

        Starts a turn when idle; a run of decodes ends with the step under way.
        """
        self._changed.add(self.index)
        if self._run is not None:
            self._cut(self._run)
        elif self.step_started_s is None:
            self._turn()

    def _turn(self) -> None:
        while self._delivered and self._has_slot:
            job = heapq.heappop(self._delivered)[1]
            assert job.lease is not None
            self.pool.commit(job.lease, job.computed)
            self._start_decoding(job)
        self._reach_milestones()
        must_look_again = self._was_preempted
        chunks = self._plan() if self._waiting or self._prefilling else []
        self._was_preempted = False
        if chunks:
            self._start_mixed(chunks)
        elif self._streams:
            # After a preemption nobody is admitted in this step, but perhaps in the next one.
            steps = 1 if must_look_again else self._streams.steps_to_milestone
            self._schedule_run(self._clock.now_s, steps)
        elif must_look_again:
            self._turn()

    @property
    def _has_slot(self) -> bool:
        return len(self._prefilling) + len(self._streams) < self._max_running

    def _plan(self) -> list[_Chunk]:
        chunks: list[_Chunk] = []
        budget = self.token_budget - len(self._streams)
        may_admit = not self._was_preempted
        position = 0
        while budget > 0:
            running = self._prefilling[position] if position < len(self._prefilling) else None
            if may_admit and self._waiting and self._has_slot:
                order, head = self._waiting[0]
                if running is None or order < running.order:
                    # Nobody overtakes a job that waits for blocks, or it might wait for ever.
                    may_admit = self._admit(head)
                    if not may_admit:
                        continue
                    self._prefilling.insert(position, head)
                    running = head
            if running is None:
                break
            position += 1
            count = min(running.remaining, budget)
            budget -= count
            chunks.append(_Chunk(running, count))
        return chunks

    def _admit(self, job: Job) -> bool:
        lease = self.pool.reserve(job.request.hashes, job.tokens, spare=len(self._streams))
        if lease is None:
            return False
        heapq.heappop(self._waiting)
        job.lease = lease
        job.table_blocks = lease.blocks
        job.computed = lease.pinned * self.pool.block_tokens
        job.phase = Phase.PREFILLING
        self._set_backlog(job, job.remaining, job.computed)
        if job.first_scheduled_s is None:
            job.cached = job.computed
            job.first_scheduled_s = self._clock.now_s
            self._events.scheduled(job)
        return True

    def _start_mixed(self, chunks: list[_Chunk]) -> None:
        sequences = len(self._streams)
        step_s = self.costs.mixed_base_s(sequences, self._streams.resident_tokens)
        for job, count in chunks:
            step_s += self.costs.tokens_s(count, job.computed)
        self.step_started_s = self._clock.now_s
        self.busy_s += step_s
        self._clock.after(step_s, self._end_mixed, chunks)

    def _end_mixed(self, chunks: list[_Chunk]) -> None:
        self._changed.add(self.index)
        self.step_started_s = None
        if self._streams:
            self._advance(1)
        for job, count in chunks:
            # A sequence that had to grow may have taken this one's blocks a moment ago.
            if job.phase is Phase.PREFILLING:
                self._complete(job, count)
        self._turn()

    def _complete(self, job: Job, count: int) -> None:
        assert job.lease is not None
        job.computed += count
        job.prefilled_tokens += count
        self.prefill_tokens += count
        self.pool.commit(job.lease, job.computed)
        self._set_backlog(job, job.remaining, job.computed)
        if not job.remaining:
            self._prefilling.remove(job)
        if job.is_only_prefill:
            if not job.remaining:
                job.phase = Phase.ENDED
            self._events.computed(job)
        elif not job.remaining:
            self._sample_first(job)

    def _sample_first(self, job: Job) -> None:
        job.tokens += 1
        job.left -= 1
        if job.tokens == job.request.prompt_tokens + 1:
            self._events.first_token(job)
        self._start_decoding(job)

    def _start_decoding(self, job: Job) -> None:
        job.phase = Phase.DECODING
        if not job.left:
            self._finish(job)
            return
        self._streams.join(job)

    def _schedule_run(self, start_s: float, steps: int) -> None:
        self._version += 1
        self._run = _Run(start_s, steps, self._version)
        self.step_started_s = start_s
        end_s = start_s + self.costs.decode_s(
            len(self._streams), self._streams.resident_tokens, steps
        )
        self._clock.at(end_s, self._end_run, self._run)

    def _cut(self, run: _Run) -> None:
        """Ends a run with the step that is being computed now."""
        elapsed_s = self._clock.now_s - run.start_s
        steps = self._steps_within(elapsed_s)
        if steps < run.steps:
            self._schedule_run(run.start_s, steps)

    def _steps_within(self, elapsed_s: float) -> int:
        """Returns the fewest whole steps that take at least `elapsed_s`."""
        sequences = len(self._streams)
        first_s = self.costs.decode_s(sequences, self._streams.resident_tokens)
        curve = self.costs.decode_coefficients(sequences)[2] * sequences / 2
        slope = first_s - curve
        # The larger root of curve k^2 + slope k = elapsed, in the form that is exact for curve 0.
        root = math.sqrt(slope * slope + 4 * curve * elapsed_s)
        return max(1, math.ceil(2 * elapsed_s / (slope + root) - 1e-9))

    def _steps_done(self) -> int:
        """Returns how many steps of the run under way have ended."""
        run = self._run
        return 0 if run is None else self._steps_within(self._clock.now_s - run.start_s) - 1

    def _end_run(self, run: _Run) -> None:
        if run is not self._run:
            return
        self._changed.add(self.index)
        self._run = self.step_started_s = None
        self.busy_s += self._clock.now_s - run.start_s
        self._advance(run.steps)
        self._turn()

    def _advance(self, steps: int) -> None:
        self._streams.advance(steps)
        self._reach_milestones()

    def _reach_milestones(self) -> None:
        """Ends the sequences that are complete, then gives the others room for their next token."""
        if not self._streams.has_due:
            return
        growing: list[Job] = []
        for job in self._streams.due():
            if job.left:
                growing.append(job)
            else:
                self._streams.leave(job)
                self._finish(job)
        growing.sort(key=order_of)
        for job in growing:
            # An earlier one of these may have taken its blocks.
            if job in self._streams and self._grow(job):
                self._streams.set_milestone(job)

    def _finish(self, job: Job) -> None:
        assert job.lease is not None
        self.pool.release(job.lease)
        job.lease = None
        job.phase = Phase.ENDED
        self._events.finished(job)

    def _grow(self, job: Job) -> bool:
        assert job.lease is not None
        while (added := self.pool.grow(job.lease, job.table_blocks, job.tokens)) is None:
            victim = self._youngest()
            self._preempt(victim)
            if victim is job:
                return False
        job.table_blocks += added
        return True

    def _youngest(self) -> Job:
        prefilling = (job for job in self._prefilling if not job.is_only_prefill)
        return max(chain(self._streams, prefilling), key=order_of)

    def _preempt(self, job: Job) -> None:
        assert job.lease is not None
        self.preemptions += 1
        self._was_preempted = True
        if job.phase is Phase.DECODING:
            self._streams.catch_up(job)
            self._streams.leave(job)
        else:
            self._prefilling.remove(job)
        self.preempted_tokens += job.computed
        self.pool.commit(job.lease, job.computed)
        self.pool.release(job.lease)
        job.lease = None
        job.computed = 0
        job.phase = Phase.WAITING
        heapq.heappush(self._waiting, (job.order, job))
        self._set_backlog(job, job.tokens, 0)

    def _set_backlog(self, job: Job, tokens: int, context: int) -> None:
        """Keeps the sums of what is left to prefill; a job's part is what it was last set to."""
        pairs = tokens * (context + tokens / 2)
        self.backlog_pairs += pairs - job.backlog_pairs
        job.backlog_pairs = pairs
        self.backlog_tokens += tokens - job.backlog_tokens
        job.backlog_tokens = tokens
