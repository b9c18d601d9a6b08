"""Driving a target with requests, open or closed loop, and summing up what came back."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count

import psutil

_WARM_SHARE = 0.25
_REFUSED_PAUSE_S = 0.01
"""A client that was refused waits this long: a target that refuses is not to be hammered."""


@dataclass(slots=True)
class Outcome:
    """What became of one request. Times are at the monotonic clock, in seconds.

    `error` is empty when it ended well. `messages` carried tokens. `is_local` tells that the decode
    worker computed the prompt itself.
    """

    started_s: float
    first_s: float = 0.0
    last_s: float = 0.0
    ended_s: float = 0.0
    tokens: int = 0
    messages: int = 0
    error: str = ""
    is_local: bool = False

    @property
    def ttft_s(self) -> float:
        """Seconds to the first token."""
        return self.first_s - self.started_s

    @property
    def tpot_s(self) -> float | None:
        """Mean seconds per token after the first; None below two."""
        return (self.last_s - self.first_s) / (self.tokens - 1) if self.tokens > 1 else None


Send = Callable[[int, Outcome], Awaitable[None]]
"""Sends request number n and writes down what becomes of it as it comes; raises nothing."""


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """How to load: `rate_per_s` requests arrive at random times (open loop), or `concurrency`
    requests are always outstanding (closed loop) when the rate is None."""

    seconds: float
    concurrency: int = 32
    rate_per_s: float | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What a measured window showed. `watched_cpu_s` is user and system time of one process.

    `tokens` and `messages` arrived in the window, whenever their requests began or ended;
    `completed`, `errors` and the latencies are of requests that ended in it.
    """

    seconds: float
    completed: int
    errors: dict[str, int]
    tokens: int
    messages: int
    requests_per_s: float
    ttft_ms: dict[str, float]
    tpot_ms: dict[str, float]
    watched_cpu_s: float | None
    own_cpu_s: float
    outcomes: Sequence[Outcome] = field(default=(), repr=False)

    def figures(self) -> dict[str, object]:
        """Returns everything but the single outcomes, for JSON."""
        return {name: value for name, value in asdict(self).items() if name != "outcomes"}


class _Book:
    """All requests of a run: those that ended since the last `open`, and those under way."""

    def __init__(self) -> None:
        self.ended: list[Outcome] = []
        self._live: dict[int, Outcome] = {}
        self._earlier_tokens = 0
        self._earlier_messages = 0

    def totals(self) -> tuple[int, int]:
        """Returns all tokens and messages so far."""
        tokens, messages = self._earlier_tokens, self._earlier_messages
        for outcome in (*self.ended, *self._live.values()):
            tokens += outcome.tokens
            messages += outcome.messages
        return tokens, messages

    def open(self) -> None:
        """Begins a new window."""
        self._earlier_tokens += sum(outcome.tokens for outcome in self.ended)
        self._earlier_messages += sum(outcome.messages for outcome in self.ended)
        self.ended.clear()

    async def run(self, send: Send, number: int) -> Outcome:
        """Runs one request and keeps its outcome."""
        outcome = self._live[number] = Outcome(time.monotonic())
        await send(number, outcome)
        outcome.ended_s = time.monotonic()
        self.ended.append(self._live.pop(number))
        return outcome


async def drive(send: Send, plan: LoadPlan, watched: int | None = None) -> LoadResult:
    """Loads the target for a quarter of the time to warm up, then for the plan's seconds.

    `watched` is the process id whose CPU time is taken over the measured window.
    """
    book, numbers = _Book(), count(plan.seed * 1_000_003)
    load = _open_loop if plan.rate_per_s else _closed_loop
    task = asyncio.ensure_future(load(send, plan, numbers, book))
    try:
        await _pause(task, plan.seconds * _WARM_SHARE)
        book.open()
        before = _Reading.take(book, watched)
        await _pause(task, plan.seconds)
        after = _Reading.take(book, watched)
        ended = list(book.ended)
    finally:
        task.cancel()
        await asyncio.wait([task])
    return _summed(ended, before, after)


@dataclass(frozen=True, slots=True)
class _Reading:
    at_s: float
    tokens: int
    messages: int
    own_cpu_s: float
    watched_cpu_s: float | None

    @classmethod
    def take(cls, book: _Book, watched: int | None) -> "_Reading":
        tokens, messages = book.totals()
        watched_s = None if watched is None else _cpu_s(psutil.Process(watched))
        return cls(time.monotonic(), tokens, messages, _cpu_s(psutil.Process()), watched_s)


async def _pause(task: "asyncio.Future[None]", seconds: float) -> None:
    """Waits while the load runs; a load that ends early has failed."""
    done, _ = await asyncio.wait([task], timeout=seconds)
    if done:
        task.result()
        raise AssertionError("the load ended by itself")


async def _closed_loop(send: Send, plan: LoadPlan, numbers: Iterator[int], book: _Book) -> None:
    async def client() -> None:
        while True:
            outcome = await book.run(send, next(numbers))
            if outcome.error:
                await asyncio.sleep(_REFUSED_PAUSE_S)

    async with asyncio.TaskGroup() as clients:
        for _ in range(plan.concurrency):
            clients.create_task(client())


async def _open_loop(send: Send, plan: LoadPlan, numbers: Iterator[int], book: _Book) -> None:
    rng = random.Random(plan.seed)  # noqa: S311 - not for secrets
    assert plan.rate_per_s is not None
    due_s = time.monotonic()
    async with asyncio.TaskGroup() as requests:
        while True:
            due_s += rng.expovariate(plan.rate_per_s)
            await asyncio.sleep(due_s - time.monotonic())
            requests.create_task(book.run(send, next(numbers)))


def _summed(ended: Sequence[Outcome], before: _Reading, after: _Reading) -> LoadResult:
    well = [outcome for outcome in ended if not outcome.error]
    tpots = [outcome.tpot_s for outcome in well]
    seconds = after.at_s - before.at_s
    cpu_s = None
    if before.watched_cpu_s is not None and after.watched_cpu_s is not None:
        cpu_s = after.watched_cpu_s - before.watched_cpu_s
    return LoadResult(
        seconds=round(seconds, 3),
        completed=len(well),
        errors=dict(Counter(outcome.error for outcome in ended if outcome.error)),
        tokens=after.tokens - before.tokens,
        messages=after.messages - before.messages,
        requests_per_s=len(well) / seconds,
        ttft_ms=percentiles_ms([outcome.ttft_s for outcome in well]),
        tpot_ms=percentiles_ms([tpot for tpot in tpots if tpot is not None]),
        watched_cpu_s=cpu_s,
        own_cpu_s=after.own_cpu_s - before.own_cpu_s,
        outcomes=ended,
    )


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """Returns p50, p90 and p99 in milliseconds (nearest rank); empty without values."""
    if not seconds:
        return {}
    ordered = sorted(seconds)
    last = len(ordered) - 1
    return {
        f"p{share}": round(1e3 * ordered[round(last * share / 100)], 3) for share in (50, 90, 99)
    }


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
