"""What an idle fleet takes, as its client sees it: targets and loads follow from that."""

import asyncio
import statistics
from collections.abc import Sequence

from bench.disagg.work import Pace
from bench.drive import Outcome
from bench.load import StreamTarget
from bench.prompts import PromptPlan

_TRIES = 5
_PROMPT = 64
_ANSWER = 32
_BATCH = 8
_TIMEOUT_S = 120.0


async def measure_pace(address: str, prompt_tokens: int) -> Pace:
    """Returns the medians of some tries with one request, and with eight requests at once.

    Raises RuntimeError when a request fails.
    """
    target = StreamTarget(address, PromptPlan(1, 1), channels=4)
    try:
        await _ask(target, 1000, _BATCH, prompt_tokens, _ANSWER)
        prompts = [await _ask(target, 1 + n, 1, prompt_tokens, 2) for n in range(_TRIES)]
        lone = [await _ask(target, 100 + n, 1, _PROMPT, _ANSWER) for n in range(_TRIES)]
        full = [await _ask(target, 200 + 10 * n, _BATCH, _PROMPT, _ANSWER) for n in range(_TRIES)]
    finally:
        await target.close()
    return Pace(
        statistics.median(it.ttft_s for tried in prompts for it in tried) / prompt_tokens,
        statistics.median(_tpots(lone)),
        statistics.median(_tpots(full)),
    )


async def _ask(
    target: StreamTarget, seed: int, count: int, prompt: int, answer: int
) -> list[Outcome]:
    """Sends requests at once and returns what became of them."""
    loop = asyncio.get_running_loop()
    plans = [PromptPlan(prompt, answer, seed=seed + number) for number in range(count)]
    outcomes = [Outcome(loop.time()) for _ in plans]
    await asyncio.gather(
        *(
            target.run(plan.request(plan.seed), outcome, _TIMEOUT_S)
            for plan, outcome in zip(plans, outcomes, strict=True)
        )
    )
    for outcome in outcomes:
        if outcome.error:
            raise RuntimeError(f"an idle fleet did not answer: {outcome.error}")
    return outcomes


def _tpots(tried: Sequence[Sequence[Outcome]]) -> list[float]:
    return [it.tpot_s for outcomes in tried for it in outcomes if it.tpot_s is not None]
