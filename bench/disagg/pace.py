"""What a fleet takes, as its client sees it: targets and loads follow from that.

Each role is measured while the other one is busy. Workers of one machine share memory, caches and
perhaps the units of a core, and both arms of the comparison keep all of it busy; what a worker
takes beside an idle one would promise more than either arm can have.
"""

import asyncio
import statistics
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count

from bench.disagg.work import Pace, Shape
from bench.drive import Outcome
from bench.load import StreamTarget
from bench.prompts import PromptPlan

_TRIES = 10
_STREAM = Shape(64, 32)
_BATCH = 8
_LONG_ANSWER = 192
_TIMEOUT_S = 120.0
LOCAL_TOKENS = 2 * _STREAM.prompt
"""Up to here a prompt must stay on the decode worker while this measures, longer ones leave it."""


async def measure_pace(address: str, prompt_tokens: int) -> Pace:
    """Returns the medians of some tries with one request, and with eight requests at once.

    The two take turns, since a shared machine may be slower for some seconds.
    Raises RuntimeError when a request fails.
    """
    asker = _Asker(address)
    prompt = Shape(prompt_tokens, 1)
    try:
        await asker.ask(_STREAM, _BATCH)
        await asker.ask(prompt, 2)
        async with asker.keeping(prompt, 2):
            lone, full = [], []
            for _ in range(_TRIES):
                lone.append(await asker.ask(_STREAM, 1))
                full.append(await asker.ask(_STREAM, _BATCH))
        async with asker.keeping(Shape(_STREAM.prompt, _LONG_ANSWER), _BATCH // 2):
            prompts = [await asker.ask(prompt, 1) for _ in range(_TRIES)]
    finally:
        await asker.close()
    return Pace(
        statistics.median(it.ttft_s for tried in prompts for it in tried) / prompt_tokens,
        statistics.median(_tpots(lone)),
        statistics.median(_tpots(full)),
    )


class _Asker:
    """A client whose prompts are all different."""

    def __init__(self, address: str) -> None:
        self._target = StreamTarget(address, PromptPlan(1, 1), channels=4)
        self._seeds = count(1)

    async def close(self) -> None:
        await self._target.close()

    async def ask(self, shape: Shape, number: int) -> list[Outcome]:
        """Sends requests at once and returns what became of them."""
        return await asyncio.gather(*(self._one(shape) for _ in range(number)))

    @asynccontextmanager
    async def keeping(self, shape: Shape, number: int) -> AsyncIterator[None]:
        """Has so many requests under way while the block runs."""

        async def ask_on() -> None:
            while True:
                await self._one(shape)

        tasks = [asyncio.create_task(ask_on()) for _ in range(number)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for failure in ended:
            if isinstance(failure, Exception):
                raise failure

    async def _one(self, shape: Shape) -> Outcome:
        seed = next(self._seeds)
        outcome = Outcome(asyncio.get_running_loop().time())
        request = PromptPlan(shape.prompt, shape.answer, seed=seed).request(seed)
        await self._target.run(request, outcome, _TIMEOUT_S)
        if outcome.error:
            raise RuntimeError(f"the fleet did not answer: {outcome.error}")
        return outcome


def _tpots(tried: Sequence[Sequence[Outcome]]) -> list[float]:
    return [it.tpot_s for outcomes in tried for it in outcomes if it.tpot_s is not None]
