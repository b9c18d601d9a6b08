"""What is asked for: request shapes, offered loads, and the targets they are judged by."""

import math
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.prompts import PromptPlan

_SPREAD = 0.25
"""Lengths differ from their mean by up to this share."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A kind of request: mean tokens of prompt and answer, and how often it comes."""

    prompt: int
    answer: int
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests of several shapes. `loads` are shares of what the busier role can do at most.

    `ttft_factor` and `tpot_factor` make the targets, from what the longest prompt takes and a
    token of a lone stream.
    """

    name: str
    shapes: tuple[Shape, ...]
    loads: tuple[float, ...]
    ttft_factor: float
    tpot_factor: float

    def stretched(self, factor: float) -> "Workload":
        """Returns the workload with prompts of `factor` times the length, for faster hardware."""
        shapes = tuple(replace(it, prompt=round(factor * it.prompt)) for it in self.shapes)
        return replace(self, shapes=shapes)

    def mean(self, field: str) -> float:
        """Returns the mean of a shape's field over the requests."""
        weights = sum(shape.weight for shape in self.shapes)
        total: float = sum(getattr(s, field) * s.weight for s in self.shapes)
        return total / weights


WORKLOADS = {
    work.name: work
    for work in (
        Workload("decode-heavy", (Shape(96, 96),), (0.4, 0.6), 5.0, 2.0),
        Workload("prefill-heavy", (Shape(768, 12),), (0.4, 0.6), 5.0, 2.0),
        Workload(
            "mixed",
            (Shape(64, 64, weight=2.0), Shape(640, 48, weight=1.0)),
            loads=(0.6, 0.8, 1.0),
            ttft_factor=5.0,
            tpot_factor=1.35,
        ),
    )
}


BINDING = "mixed"
"""The workload where the targets for TPOT bind; the benchmark's ratios are its."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What a role takes beside a busy one, in seconds: a prompt token, decode steps of 1 and 8."""

    prompt_token_s: float
    lone_step_s: float
    full_step_s: float

    def prefill_s(self, prompt_tokens: float) -> float:
        """Returns the seconds of a prompt."""
        return prompt_tokens * self.prompt_token_s

    def decode_s(self, work: Workload) -> float:
        """Returns the seconds of a decode worker that a request's answer takes, on average."""
        return work.mean("answer") * self.full_step_s / 8

    def most_per_s(self, work: Workload) -> float:
        """Returns the requests per second that saturate one worker per role, whichever is first."""
        return 1 / max(self.prefill_s(work.mean("prompt")), self.decode_s(work))

    def balance(self, work: Workload) -> float:
        """Returns the factor of prompt lengths that keeps one worker per role equally busy."""
        return self.decode_s(work) / self.prefill_s(work.mean("prompt"))


@dataclass(frozen=True, slots=True)
class Slo:
    """Targets in seconds; a request counts when it meets both."""

    ttft_s: float
    tpot_s: float

    @classmethod
    def of(cls, work: Workload, pace: Pace) -> "Slo":
        """Returns the workload's targets on hardware of this pace."""
        longest = max(shape.prompt for shape in work.shapes)
        return cls(
            round(work.ttft_factor * (pace.prefill_s(longest) + pace.lone_step_s), 4),
            round(work.tpot_factor * pace.lone_step_s, 5),
        )


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: when it comes after the start, and its sizes in tokens."""

    at_s: float
    prompt: int
    answer: int

    def request(self, seed: int) -> bytes:
        """Returns it serialised, with a prompt that follows from the seed."""
        return PromptPlan(self.prompt, self.answer, seed=seed).request(seed)


def arrivals(
    shapes: Sequence[Shape], rate_per_s: float, seconds: float, seed: int
) -> list[Arrival]:
    """Returns the requests of one run: the same for the same arguments.

    Times are those of a Poisson process of which it is known how many came; left to chance, a run
    of half a minute offers half as much again as another one. So is the share of each shape.
    """
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    count = max(1, round(rate_per_s * seconds))
    weights = sum(shape.weight for shape in shapes)
    kinds = [it for it in shapes for _ in range(math.ceil(count * it.weight / weights))]
    rng.shuffle(kinds)
    times = sorted(rng.uniform(0, seconds) for _ in range(count))
    return [
        Arrival(at_s, _about(rng, kind.prompt), max(2, _about(rng, kind.answer)))
        for at_s, kind in zip(times, kinds, strict=False)
    ]


def prompt_ids(tokens: int, seed: int) -> "array[int]":
    """Returns a prompt of its own."""
    return PromptPlan(tokens, 1, seed=seed).ids(seed)


def _about(rng: random.Random, mean: int) -> int:
    return max(1, round(mean * rng.uniform(1 - _SPREAD, 1 + _SPREAD)))
