"""What a small mesh on one host takes, measured on requests that are there for that.

First each thing alone: prompts one after the other on the prefill worker, then on the decode
worker, then streams in batches of several sizes. Then prompts while streams run, which tells by
how much the two workers slow each other down. Nothing here is taken from the requests that the
simulator is compared on.
"""

import asyncio
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

from baton.client import Completion, RouterClient
from bench.parity.asks import Ask, Seen, send, send_all
from sim.costs.fit import Sample, fit
from sim.costs.hardware import Hardware
from sim.costs.model import StepCosts
from sim.engine.host import Sharing

REPEATS = 5
"""Of each probe; what is kept is the median."""
BATCH_REPEATS = 3
REMOTE_TOKENS = (272, 400, 512, 640, 800, 1024, 1200, 1600)
LOCAL_TOKENS = (32, 64, 96, 128, 192, 250)
BATCHES = ((1, 64), (2, 64), (4, 64), (6, 64), (1, 1440), (2, 1440), (4, 1440), (6, 960))
"""Streams that run together, and the tokens of their prompt, which is the same and cached."""
STREAM_TOKENS = 48
TOGETHER_STREAMS = 3
TOGETHER_TOKENS = (640, 1024, 1600)
TOGETHER_OUTPUT = 96
LEAD_S = 0.3
"""What the streams get to begin before the prompts do."""


@dataclass(frozen=True, slots=True)
class Probed:
    """A mesh's workers and what is between them. Seconds.

    `overhead_s` is what of a TTFT is neither queue, prefill nor transfer; `transfer_s` is what a
    transfer adds after the last chunk.
    """

    prefill: Hardware
    decode: Hardware
    sharing: Sharing
    overhead_s: float
    transfer_s: float

    def describe(self) -> str:
        """Returns everything measured, in a few lines."""
        return (
            f"{self.prefill.describe()}\n{self.decode.describe()}\n"
            f"beside the other one prefill takes {self.sharing.prefill:.2f} and decoding "
            f"{self.sharing.decode:.2f} times as long; the mesh adds {1e3 * self.overhead_s:.1f} "
            f"ms to a TTFT and {1e3 * self.transfer_s:.1f} ms where KV moves"
        )


class Probe:
    """Measures one mesh through its router. `budget` is the most tokens of a step."""

    def __init__(self, client: RouterClient, budget: int, kv_tokens: int, kv_bytes: int) -> None:
        self._client = client
        self._budget = budget
        self._kv = kv_tokens, kv_bytes
        self._numbers = itertools.count(1_000_000)

    async def run(self) -> Probed:
        """Returns what was found, after some twenty seconds."""
        await self._prompts((900, 100), 1)
        remote = await self._prompts(REMOTE_TOKENS, REPEATS)
        local = await self._prompts(LOCAL_TOKENS, REPEATS)
        prompts_far, prompts_here = fit(self._prefills(remote)), fit(self._prefills(local))
        steps = fit([sample async for sample in self._batches()])
        far = StepCosts(prompts_far[0], steps[0])
        here = StepCosts(prompts_here[0], steps[0])
        sharing = await self._together(far)
        every = [
            completion for group in (*remote.values(), *local.values()) for completion in group
        ]
        return Probed(
            self._hardware("prefill worker", far, prompts_far[1], None),
            self._hardware("decode worker", here, prompts_here[1], steps[1]),
            sharing,
            median(_overhead_s(completion) for completion in every),
            median(c.timing.kv_transfer_s for c in every if c.is_remote_prefill),
        )

    async def _prompts(self, lengths: Sequence[int], repeats: int) -> dict[int, list[Completion]]:
        """Sends prompts that want one token, one after the other."""
        done: dict[int, list[Completion]] = defaultdict(list)
        for tokens in itertools.chain.from_iterable(itertools.repeat(lengths, repeats)):
            done[tokens].append(await self._send(tokens, 1))
        return done

    def _prefills(self, done: dict[int, list[Completion]]) -> list[Sample]:
        return [
            (self._features(tokens), median(each.timing.prefill_compute_s for each in group))
            for tokens, group in done.items()
        ]

    def _features(self, tokens: int) -> tuple[float, float, float]:
        return -(-tokens // self._budget), tokens, tokens * tokens / 2

    async def _batches(self) -> AsyncIterator[Sample]:
        for size, tokens in BATCHES:
            ask = Ask(0.0, tokens, STREAM_TOKENS, family=tokens, shared_tokens=tokens)
            await send(self._client, replace(ask, output_tokens=1), 0)
            seen: list[Seen] = []
            for _ in range(BATCH_REPEATS):
                seen += await send_all(self._client, [ask] * size)
            resident = size * (tokens + STREAM_TOKENS / 2)
            yield (1.0, size, resident), median(it.completion.timing.tpot_s or 0.0 for it in seen)

    async def _together(self, alone: StepCosts) -> Sharing:
        """Sends prompts while streams run; compares both with what they take alone."""
        is_over = asyncio.Event()
        streams = [asyncio.create_task(self._stream(is_over)) for _ in range(TOGETHER_STREAMS)]
        await asyncio.sleep(LEAD_S)
        done = await self._prompts(TOGETHER_TOKENS, REPEATS)
        is_over.set()
        tpots = list(itertools.chain.from_iterable(await asyncio.gather(*streams)))
        resident = TOGETHER_STREAMS * (64 + TOGETHER_OUTPUT / 2)
        step_s = alone.decode_s(TOGETHER_STREAMS, resident)
        slower = [
            each.timing.prefill_compute_s / alone.prefill_s(tokens, 0, self._budget)
            for tokens, group in done.items()
            for each in group
        ]
        return Sharing(max(1.0, median(slower)), max(1.0, median(tpots) / step_s))

    async def _stream(self, is_over: asyncio.Event) -> list[float]:
        """Streams one answer after the other and returns the TPOT of each."""
        tpots = []
        while not is_over.is_set():
            completion = await self._send(64, TOGETHER_OUTPUT)
            tpots.append(completion.timing.tpot_s or 0.0)
        # The last one ran on alone.
        return tpots[:-1] or tpots

    def _hardware(
        self, name: str, costs: StepCosts, prefill_error: float, decode_error: float | None
    ) -> Hardware:
        return Hardware(
            name,
            "probed",
            costs,
            *self._kv,
            prefill_error=prefill_error,
            decode_error=decode_error,
        )

    async def _send(self, prompt_tokens: int, output_tokens: int) -> Completion:
        return await send(self._client, Ask(0.0, prompt_tokens, output_tokens), next(self._numbers))


def _overhead_s(completion: Completion) -> float:
    timing = completion.timing
    known_s = timing.prefill_queue_s + timing.prefill_compute_s + timing.kv_transfer_s
    return timing.ttft_s - known_s
