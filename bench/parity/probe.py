"""What a small mesh on one host takes, measured on requests that are there for that.

Each thing alone: prompts one after the other on the prefill worker, then on the decode worker,
then streams in batches of several sizes. Then prompts while streams run, which tells by how much
the two workers slow each other down. Nothing here is taken from the requests that the simulator is
compared on. Rounds of it lie between parts of the comparison, so that both see the same machine.
"""

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from baton.client import Completion, RouterClient
from bench.parity.asks import Ask, send, send_all
from sim.costs.fit import Sample, fit
from sim.costs.hardware import Hardware
from sim.costs.model import StepCosts
from sim.engine.host import Sharing

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

Groups = dict[tuple[int, int], list[Completion]]
"""Completions by batch size and prompt tokens."""


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


@dataclass(slots=True)
class Probe:
    """Measures one mesh through its router, in rounds. `budget` is the most tokens of a step."""

    client: RouterClient
    budget: int
    kv_tokens: int
    kv_bytes: int
    _remote: Groups = field(default_factory=lambda: defaultdict(list))
    _local: Groups = field(default_factory=lambda: defaultdict(list))
    _streams: Groups = field(default_factory=lambda: defaultdict(list))
    _beside: Groups = field(default_factory=lambda: defaultdict(list))
    _slowed: list[Completion] = field(default_factory=list)
    _numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1_000_000))

    async def warm_up(self) -> None:
        """Sends what is not measured: connections and memory are set up by the first requests."""
        for tokens in (900, 100, 1600, 60):
            await self._send(tokens, 8)

    async def round(self) -> None:
        """Measures everything once, in some ten seconds."""
        await self._prompts(REMOTE_TOKENS, self._remote)
        await self._prompts(LOCAL_TOKENS, self._local)
        for size, tokens in BATCHES:
            ask = Ask(0.0, tokens, STREAM_TOKENS, family=tokens, shared_tokens=tokens)
            await send(self.client, replace(ask, output_tokens=1), 0)
            seen = await send_all(self.client, [ask] * size)
            self._streams[size, tokens] += [it.completion for it in seen]
        await self._together()

    def result(self) -> Probed:
        """Returns what all rounds together say: medians of each probe, and the fits to them."""
        prompts_far, prompts_here = (
            fit(self._prefills(self._remote)),
            fit(self._prefills(self._local)),
        )
        steps = fit(self._steps(self._streams))
        far, here = StepCosts(prompts_far[0], steps[0]), StepCosts(prompts_here[0], steps[0])
        alone = [*_all(self._remote), *_all(self._local)]
        return Probed(
            self._hardware("prefill worker", far, prompts_far[1], None),
            self._hardware("decode worker", here, prompts_here[1], steps[1]),
            self._sharing(far),
            median(_overhead_s(each) for each in alone),
            median(each.timing.kv_transfer_s for each in _all(self._remote)),
        )

    async def _prompts(self, lengths: Sequence[int], into: Groups) -> None:
        """Sends prompts that want one token, one after the other."""
        for tokens in lengths:
            into[1, tokens].append(await self._send(tokens, 1))

    async def _together(self) -> None:
        """Sends prompts while streams run."""
        is_over = asyncio.Event()
        streams = [asyncio.create_task(self._stream(is_over)) for _ in range(TOGETHER_STREAMS)]
        await asyncio.sleep(LEAD_S)
        await self._prompts(TOGETHER_TOKENS, self._beside)
        is_over.set()
        for done in await asyncio.gather(*streams):
            self._slowed += done

    async def _stream(self, is_over: asyncio.Event) -> list[Completion]:
        """Streams one answer after the other; returns those that had prompts beside them."""
        done = []
        while not is_over.is_set():
            done.append(await self._send(64, TOGETHER_OUTPUT))
        return done[:-1] or done

    def _prefills(self, groups: Groups) -> list[Sample]:
        return [
            (
                (-(-tokens // self.budget), tokens, tokens * tokens / 2),
                median(each.timing.prefill_compute_s for each in group),
            )
            for (_, tokens), group in groups.items()
        ]

    def _steps(self, groups: Groups) -> list[Sample]:
        return [
            (
                (1.0, size, size * (tokens + STREAM_TOKENS / 2)),
                median(each.timing.tpot_s or 0.0 for each in group),
            )
            for (size, tokens), group in groups.items()
        ]

    def _sharing(self, alone: StepCosts) -> Sharing:
        """Compares what ran together with what it takes alone."""
        prompts = [
            each.timing.prefill_compute_s / alone.prefill_s(tokens, 0, self.budget)
            for (_, tokens), group in self._beside.items()
            for each in group
        ]
        resident = TOGETHER_STREAMS * (64 + TOGETHER_OUTPUT / 2)
        step_s = alone.decode_s(TOGETHER_STREAMS, resident)
        steps = median(each.timing.tpot_s or 0.0 for each in self._slowed) / step_s
        return Sharing(max(1.0, median(prompts)), max(1.0, steps))

    def _hardware(
        self, name: str, costs: StepCosts, prefill_error: float, decode_error: float | None
    ) -> Hardware:
        return Hardware(
            name,
            "probed",
            costs,
            self.kv_tokens,
            self.kv_bytes,
            prefill_error=prefill_error,
            decode_error=decode_error,
        )

    async def _send(self, prompt_tokens: int, output_tokens: int) -> Completion:
        ask = Ask(0.0, prompt_tokens, output_tokens)
        return await send(self.client, ask, next(self._numbers))


def _all(groups: Groups) -> Iterable[Completion]:
    return itertools.chain.from_iterable(groups.values())


def _overhead_s(completion: Completion) -> float:
    timing = completion.timing
    known_s = timing.prefill_queue_s + timing.prefill_compute_s + timing.kv_transfer_s
    return timing.ttft_s - known_s
