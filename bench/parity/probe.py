"""What a small mesh on one host does with requests that are there to measure it, in rounds.

Each thing alone: prompts one after the other on the prefill worker, then on the decode worker,
then streams in batches of several sizes. Then prompts while streams run, which tells by how much
the two workers slow each other down. Nothing here is taken from the requests that the simulator is
compared on.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import mean
from typing import NamedTuple

from baton.client import Chunk, Completion, RouterClient
from bench.parity.asks import Ask, answer, send, send_all

REMOTE_TOKENS = (272, 400, 512, 640, 800, 1024, 1200, 1600)
LOCAL_TOKENS = (32, 64, 96, 128, 192, 250)
BATCHES = ((1, 64), (2, 64), (4, 64), (6, 64), (1, 1440), (2, 1440), (4, 1440), (6, 960))
"""Streams that run together, and the tokens of their prompt, which is the same and cached."""
STREAM_TOKENS = 48
TOGETHER_STREAMS = 3
TOGETHER_TOKENS = (640, 1200, 800, 1600, 1024)
TOGETHER_OUTPUT = 1024
"""More than the streams get to, which end when the last prompt is computed."""
APART_S = 0.15
"""How long the streams run alone before each prompt."""


class Alone(NamedTuple):
    """A request that ran by itself, or with others like it: `sequences` together."""

    sequences: int
    prompt_tokens: int
    completion: Completion


class Beside(NamedTuple):
    """A prompt computed while the other worker streamed, whose steps took `step_s` meanwhile and
    `before_s` just before."""

    prompt_tokens: int
    completion: Completion
    before_s: float
    step_s: float


@dataclass(frozen=True, slots=True)
class Round:
    """Everything measured once."""

    remote: Sequence[Alone]
    local: Sequence[Alone]
    streams: Sequence[Alone]
    beside: Sequence[Beside]


@dataclass(slots=True)
class Probe:
    """Measures one mesh through its router."""

    client: RouterClient
    _numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1_000_000))

    async def warm_up(self) -> None:
        """Sends what is not measured: connections and memory are set up by the first requests."""
        for tokens in (900, 100, 1600, 60):
            await self._send(tokens, 8)

    async def round(self) -> Round:
        """Measures everything once, in some eight seconds."""
        return Round(
            remote=[Alone(1, tokens, await self._send(tokens, 1)) for tokens in REMOTE_TOKENS],
            local=[Alone(1, tokens, await self._send(tokens, 1)) for tokens in LOCAL_TOKENS],
            streams=[it for batch in BATCHES for it in await self._batch(*batch)],
            beside=await self._together(),
        )

    async def _batch(self, size: int, tokens: int) -> list[Alone]:
        ask = Ask(0.0, tokens, STREAM_TOKENS, family=tokens, shared_tokens=tokens)
        await send(self.client, replace(ask, output_tokens=1), 0)
        seen = await send_all(self.client, [ask] * size)
        return [Alone(size, tokens, it.completion) for it in seen]

    async def _together(self) -> list[Beside]:
        """Sends prompts while streams run."""
        async with self._streaming() as streams:
            return [await self._beside(tokens, streams) for tokens in TOGETHER_TOKENS]

    async def _beside(self, tokens: int, streams: Sequence[Sequence[float]]) -> Beside:
        await asyncio.sleep(APART_S)
        sent_s = time.monotonic()
        done = await self._send(tokens, 1)
        end_s = time.monotonic()
        began_s = end_s - done.timing.prefill_compute_s - done.timing.kv_transfer_s
        before_s = _step_s(streams, sent_s - APART_S, sent_s)
        return Beside(tokens, done, before_s, _step_s(streams, began_s, end_s))

    @contextlib.asynccontextmanager
    async def _streaming(self) -> AsyncIterator[Sequence[Sequence[float]]]:
        """Streams answers meanwhile; yields when each one's tokens came, first when all do."""
        came_s: list[list[float]] = [[] for _ in range(TOGETHER_STREAMS)]
        async with asyncio.TaskGroup() as group:
            begun = [asyncio.Event() for _ in came_s]
            tasks = [
                group.create_task(self._stream(times, event))
                for times, event in zip(came_s, begun, strict=True)
            ]
            for event in begun:
                await event.wait()
            yield came_s
            for task in tasks:
                task.cancel()

    async def _stream(self, came_s: list[float], begun: asyncio.Event) -> None:
        ask = Ask(0.0, 64, TOGETHER_OUTPUT)
        async for part in answer(self.client, ask, next(self._numbers)):
            if isinstance(part, Chunk):
                came_s += [time.monotonic()] * len(part.output_ids)
                begun.set()

    async def _send(self, prompt_tokens: int, output_tokens: int) -> Completion:
        ask = Ask(0.0, prompt_tokens, output_tokens)
        return await send(self.client, ask, next(self._numbers))


def _step_s(streams: Sequence[Sequence[float]], since_s: float, until_s: float) -> float:
    """Returns the mean time between tokens of all streams within a time."""
    within = [[at_s for at_s in came_s if since_s <= at_s <= until_s] for came_s in streams]
    return mean(later - at_s for times in within for at_s, later in pairwise(times))
