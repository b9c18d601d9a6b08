"""What steps took, as samples for the cost model. Pure Python, no torch."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from baton.engine.base import EngineSamples, PrefillSample, StepSample
from baton.engine.torch.job import Job, Phase
from baton.engine.torch.scheduler import Chunk

T = TypeVar("T")

MAX_SAMPLES = 256
"""Samples of each kind kept until somebody takes them."""

_DECODE_MEMORY = 0.8
"""Weight of the past in the running mean of a decode step's seconds."""


@dataclass(slots=True)
class _Prompt:
    """A prompt that is being computed and was measured in all steps so far."""

    cached_tokens: int
    seconds: float = 0.0


class StepSamples:
    """Turns steps into samples. The engine thread notes, any thread takes.

    A step without prompts is one decode sample. A prompt is one sample over all its chunks, so
    that the cost of a long prompt is not extrapolated from that of a chunk, and because on a GPU
    only its last chunk waits for the device. Decodes in the same steps are taken off by what
    recent steps of only decodes took; before any such step was seen there is no sample. What is
    left of a step with several prompts is divided by their tokens: a queue fills each step's rest
    with the next prompt, so a busy worker would otherwise measure nothing.
    """

    def __init__(self) -> None:
        self._prefills: deque[PrefillSample] = deque(maxlen=MAX_SAMPLES)
        self._steps: deque[StepSample] = deque(maxlen=MAX_SAMPLES)
        self._prompts: dict[Job, _Prompt] = {}
        self._decode_s: float | None = None

    def note(self, chunks: Sequence[Chunk], seconds: float) -> None:
        """Takes a step in; call before its chunks are completed."""
        prompts = [chunk for chunk in chunks if chunk.job.phase is Phase.PREFILLING]
        if not prompts:
            self._note_decodes(chunks, seconds)
            return
        decodes_s = self._decode_s if len(chunks) > len(prompts) else 0.0
        tokens = sum(chunk.count for chunk in prompts)
        for chunk in prompts:
            if decodes_s is None:
                self._prompts.pop(chunk.job, None)
            else:
                self._note_prompt(chunk, (seconds - decodes_s) * chunk.count / tokens)

    def forget(self, job: Job) -> None:
        """Drops what is known of a job that ended or lost its blocks."""
        self._prompts.pop(job, None)

    def take(self) -> EngineSamples:
        """Returns the samples since the last call."""
        return EngineSamples(_drain(self._prefills), _drain(self._steps))

    def _note_decodes(self, chunks: Sequence[Chunk], seconds: float) -> None:
        known = self._decode_s
        if known is None:
            self._decode_s = seconds
        else:
            self._decode_s = _DECODE_MEMORY * known + (1 - _DECODE_MEMORY) * seconds
        resident = sum(chunk.start + chunk.count for chunk in chunks)
        self._steps.append(StepSample(len(chunks), resident, seconds))

    def _note_prompt(self, chunk: Chunk, seconds: float) -> None:
        job = chunk.job
        if chunk.start == job.cached_tokens and not job.is_prefilled:
            self._prompts[job] = _Prompt(chunk.start)
        prompt = self._prompts.get(job)
        if prompt is None:
            return
        prompt.seconds += max(0.0, seconds)
        if chunk.samples:
            del self._prompts[job]
            uncached = chunk.start + chunk.count - prompt.cached_tokens
            self._prefills.append(PrefillSample(uncached, prompt.cached_tokens, prompt.seconds))


def _drain(samples: "deque[T]") -> tuple[T, ...]:
    # The engine thread may append meanwhile; taking one by one needs no lock.
    return tuple(samples.popleft() for _ in range(len(samples)))
