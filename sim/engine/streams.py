"""The sequences that decode together on one worker, a token each per step.

What changes between steps is kept as sums and as the step at which each sequence next needs
attention, so that many steps cost as much as one.
"""

import heapq
from collections.abc import Iterable, Iterator

from sim.engine.job import Job, Order


def order_of(job: Job) -> Order:
    """Returns where a job stands in its worker's queue."""
    return job.order


class Streams:
    """A decode batch. `done` in what follows are steps that ended but were not `advance`d yet."""

    def __init__(self, block_tokens: int) -> None:
        self.steps = 0
        self.tokens = 0
        self.resident_tokens = 0
        self._block_tokens = block_tokens
        self._jobs: set[Job] = set()
        self._milestones: list[tuple[int, Order, Job]] = []

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job: Job) -> bool:
        return job in self._jobs

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs)

    def generated(self, job: Job, done: int) -> int:
        """Returns how many tokens of a job are out."""
        grown = self.steps + done - job.joined_step if job in self._jobs else 0
        return job.request.output_tokens - job.left + grown

    def lengths(self, done: int) -> Iterator[tuple[int, int]]:
        """Yields the length of each job's answer and how much of it is left."""
        steps = self.steps + done
        for job in self._jobs:
            yield job.request.output_tokens, job.left - (steps - job.joined_step)

    def join(self, job: Job) -> None:
        """Takes in a job with at least one token left."""
        job.joined_step = self.steps
        self._jobs.add(job)
        self.resident_tokens += job.tokens
        self.set_milestone(job)

    def leave(self, job: Job) -> None:
        """Gives up a job whose figures are up to date."""
        self._jobs.remove(job)
        self.resident_tokens -= job.tokens

    def set_milestone(self, job: Job) -> None:
        """Notes the step at which the job ends or its next token needs another block."""
        room = job.table_blocks * self._block_tokens - job.tokens
        end = job.joined_step + min(job.left, room + 1)
        job.milestone = end
        heapq.heappush(self._milestones, (end, job.order, job))

    @property
    def steps_to_milestone(self) -> int:
        """Steps until a job needs attention. There must be jobs."""
        return max(1, self._milestones[0][0] - self.steps)

    @property
    def has_due(self) -> bool:
        """True when `due` may yield something."""
        return bool(self._milestones) and self._milestones[0][0] <= self.steps

    def advance(self, steps: int) -> None:
        """Counts steps that ended."""
        count = len(self._jobs)
        self.steps += steps
        self.tokens += steps * count
        self.resident_tokens += steps * count

    def due(self) -> Iterable[Job]:
        """Yields the jobs that ended or need room, up to date, by their milestones."""
        milestones = self._milestones
        while milestones and milestones[0][0] <= self.steps:
            step, _, job = heapq.heappop(milestones)
            if job in self._jobs and job.milestone == step:
                self.catch_up(job)
                yield job

    def catch_up(self, job: Job) -> None:
        """Brings a job's own figures up to date."""
        grown = self.steps - job.joined_step
        job.tokens += grown
        job.computed = job.tokens - 1
        job.left -= grown
        job.joined_step = self.steps
