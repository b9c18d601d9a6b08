"""What a benchmark of SGLang asks, and rising load with it on anything that can be asked."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from bench.drive import LoadPlan, LoadResult, Outcome, drive
from bench.prompts import PromptPlan

WARM_UP = 3


@dataclass(frozen=True, slots=True)
class Work:
    """What is asked; a request is good within both targets."""

    prompt_tokens: int
    output_tokens: int
    requests: int
    rates: tuple[float, ...]
    seconds: float
    ttft_ms: float
    tpot_ms: float

    def prompts(self, seed: int | None = None) -> PromptPlan:
        """Returns prompts that nobody asked before, unless a seed is given."""
        seed = random.randrange(1 << 30) if seed is None else seed  # noqa: S311 - not for secrets
        return PromptPlan(self.prompt_tokens, self.output_tokens, seed=seed)


@dataclass(frozen=True, slots=True)
class Step:
    """The figures of one part of the run, as kept on disk before the next part starts."""

    name: str
    figures: Mapping[str, Any]


Keep = Callable[[Step], None]


class Target(Protocol):
    """Whatever takes requests by number; see bench.drive."""

    async def send(self, number: int, outcome: Outcome) -> None:
        """Runs one request to its end."""
        ...

    async def close(self) -> None:
        """Closes the connections."""
        ...


async def goodput(
    work: Work, name: str, target_of: Callable[[PromptPlan], Target], keep: Keep
) -> float:
    """Returns the most good requests per second that any of the rates gave."""
    best, prompts = 0.0, work.prompts()
    for rate in work.rates:
        target = target_of(prompts)
        try:
            load = await drive(target.send, LoadPlan(work.seconds, rate_per_s=rate))
        finally:
            await target.close()
        good = good_per_s(load, work)
        best = max(best, good)
        figures = {"rate": rate, "good_per_s": good, "tokens_per_s": load.tokens / load.seconds}
        keep(Step(f"{name}-load-{rate:g}", {**figures, **load.figures()}))
        if good < rate / 4:
            break  # beyond what it can; more load only queues
    return best


def good_per_s(load: LoadResult, work: Work) -> float:
    """Returns the requests per second that met both targets; errors met none."""
    good = [
        it
        for it in load.outcomes
        if not it.error
        and 1e3 * it.ttft_s <= work.ttft_ms
        and 1e3 * (it.tpot_s or 0.0) <= work.tpot_ms
    ]
    return len(good) / load.seconds
