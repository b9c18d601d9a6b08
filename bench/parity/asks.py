"""Requests that a mesh and the simulator both get, and what a mesh does with them."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace

from baton.client import Chunk, Completion, Prompt, RequestOptions, RouterClient
from baton.requests import SamplingParams
from sim.workload import SimRequest

BLOCK = 16


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of the schedule: its first `shared` tokens are its family's."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    family: int = 0
    shared_tokens: int = 0

    def input_ids(self, number: int) -> tuple[int, ...]:
        """Returns the prompt's ids."""
        common = random.Random(f"family {self.family}")  # noqa: S311 - not for secrets
        own = random.Random(f"request {number}")  # noqa: S311 - not for secrets
        ids = [common.randrange(300, 4000) for _ in range(self.shared_tokens)]
        ids += [own.randrange(300, 4000) for _ in range(self.prompt_tokens - self.shared_tokens)]
        return tuple(ids)

    def simulated(self, number: int) -> SimRequest:
        """Returns the same for the simulator."""
        blocks, shared = self.prompt_tokens // BLOCK, self.shared_tokens // BLOCK
        first, own = 1_000_000 * (self.family + 1), 1_000_000_000 + 100_000 * number
        hashes = (*range(first, first + shared), *range(own + shared, own + blocks))
        return SimRequest(self.at_s, self.prompt_tokens, self.output_tokens, hashes)


@dataclass(frozen=True, slots=True)
class Seen:
    """What the mesh did with a request, and when it was sent."""

    sent_s: float
    completion: Completion


async def send_all(
    client: RouterClient, asks: Sequence[Ask], first: int = 0, started_s: float | None = None
) -> list[Seen]:
    """Sends each at its time, counted from `started_s`; those with the same time go together."""
    started_s = time.monotonic() if started_s is None else started_s
    tasks = []
    for number, ask in enumerate(asks):
        delay_s = ask.at_s - (time.monotonic() - started_s)
        await asyncio.sleep(max(0.0, delay_s))
        tasks.append(asyncio.create_task(_send(client, ask, first + number, started_s)))
    return list(await asyncio.gather(*tasks))


def as_sent(asks: Sequence[Ask], seen: Sequence[Seen]) -> Iterator[SimRequest]:
    """Yields the requests for the simulator, at the times at which they were really sent."""
    for number, (ask, real) in enumerate(zip(asks, seen, strict=True)):
        yield replace(ask.simulated(number), arrival_s=real.sent_s)


async def send(client: RouterClient, ask: Ask, number: int) -> Completion:
    """Sends one now and returns how it ended."""
    return (await _send(client, ask, number, 0.0)).completion


def answer(client: RouterClient, ask: Ask, number: int) -> AsyncIterator[Chunk | Completion]:
    """Returns the stream of a request, which is sent when it is first asked for a part."""
    prompt = Prompt(input_ids=ask.input_ids(number))
    sampling = SamplingParams(max_tokens=ask.output_tokens, ignore_eos=True)
    return client.generate(prompt, RequestOptions(sampling=sampling))


async def _send(client: RouterClient, ask: Ask, number: int, started_s: float) -> Seen:
    answering = answer(client, ask, number)
    sent_s = time.monotonic() - started_s
    parts = [part async for part in answering]
    completion = parts[-1]
    assert isinstance(completion, Completion)
    return Seen(sent_s, completion)
