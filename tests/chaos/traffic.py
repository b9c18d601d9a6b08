"""Clients that ask, cancel, read slowly and leave, and know the one right answer to each prompt."""

import asyncio
import enum
import random
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import grpc

from baton.v1 import router_pb2, router_pb2_grpc, types_pb2

DEADLINE_S = 30.0
GRACE_S = 2.0
"""An answer or error may be this late after its deadline, on a machine with two cores."""

_TYPED = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
}
_CANCEL_SHARE = 0.15
_SLOW_SHARE = 0.1
_SLOW_READ_S = 0.05
_THINK_S = 0.05


class Ending(enum.Enum):
    """How one request ended, as its client saw it."""

    RIGHT = "right"
    WRONG = "wrong"
    """Tokens that the model would not say: never allowed."""
    TYPED_ERROR = "typed error"
    CANCELLED = "cancelled"
    LOST = "lost"
    """No end before its deadline, an end without GenerateComplete, or an error that is a bug."""


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and the model's greedy answer to it."""

    input_ids: tuple[int, ...]
    answer: tuple[int, ...]


class Answer(NamedTuple):
    """How one request ended, and when its tokens came; `words` where the ending needs them."""

    ending: Ending
    words: str = ""
    ttft_s: float | None = None
    tpot_s: float | None = None


@dataclass(slots=True)
class Tally:
    """What all clients saw; `details` has a line for each ending that is not allowed.

    The times are those of right answers; clients that read slowly count for the first token only.
    """

    endings: Counter[Ending] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)
    ttft_s: list[float] = field(default_factory=list)
    tpot_s: list[float] = field(default_factory=list)

    def add(self, answer: Answer) -> None:
        """Counts one."""
        self.endings[answer.ending] += 1
        if answer.ending is Ending.TYPED_ERROR:
            self.errors[answer.words] += 1
        elif answer.ending in (Ending.WRONG, Ending.LOST):
            self.details.append(f"{answer.ending.value}: {answer.words}")
        if answer.ttft_s is not None:
            self.ttft_s.append(answer.ttft_s)
        if answer.tpot_s is not None:
            self.tpot_s.append(answer.tpot_s)

    @property
    def requests(self) -> int:
        """Requests that ended."""
        return sum(self.endings.values())


class Traffic:
    """`clients` closed loops, each turn against any of the routers, between `start` and `stop`."""

    def __init__(
        self, addresses: list[str], questions: list[Question], rng: random.Random, tally: Tally
    ) -> None:
        self._addresses = addresses
        self._questions = questions
        self._rng = rng
        self._tally = tally
        self._stopping = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []

    def start(self, clients: int, over_s: float = 0.0) -> None:
        """Begins to ask, one client after the other until `over_s` from now."""
        self._stopping.clear()
        self._loops = [
            asyncio.create_task(self._client(over_s * at / clients)) for at in range(clients)
        ]

    async def stop(self) -> None:
        """Asks nothing new and returns when every request under way ended."""
        self._stopping.set()
        await asyncio.gather(*self._loops)

    async def is_answered(self, timeout_s: float) -> bool:
        """Tells whether each router answers a short question rightly; this is not counted."""
        question = min(self._questions, key=lambda it: len(it.input_ids))
        for address in self._addresses:
            async with grpc.aio.insecure_channel(address) as channel:
                answer = await _ask(channel, question, timeout_s, None, 0.0)
            if answer.ending is not Ending.RIGHT:
                return False
        return True

    async def _client(self, after_s: float) -> None:
        rng = random.Random(self._rng.random())
        await asyncio.sleep(after_s)
        async with AsyncExitStack() as stack:
            channels = [
                await stack.enter_async_context(grpc.aio.insecure_channel(address))
                for address in self._addresses
            ]
            while not self._stopping.is_set():
                await self._turn(rng.choice(channels), rng)
                await asyncio.sleep(rng.expovariate(1 / _THINK_S))

    async def _turn(self, channel: grpc.aio.Channel, rng: random.Random) -> None:
        question = rng.choice(self._questions)
        leaves = rng.random() < _CANCEL_SHARE
        leave_after = rng.randrange(len(question.answer)) if leaves else None
        read_s = _SLOW_READ_S if rng.random() < _SLOW_SHARE else 0.0
        self._tally.add(await _ask(channel, question, DEADLINE_S, leave_after, read_s))


async def _ask(
    channel: grpc.aio.Channel,
    question: Question,
    timeout_s: float,
    leave_after: int | None,
    read_s: float,
) -> Answer:
    """Asks and reads, every `read_s`, to the end or until it leaves."""
    request = router_pb2.GenerateRequest(
        input_ids=question.input_ids,
        sampling_params=types_pb2.SamplingParams(
            max_tokens=len(question.answer), temperature=0.0, ignore_eos=True
        ),
    )
    stub = router_pb2_grpc.RouterServiceStub(channel)
    began_s = time.monotonic()
    call = stub.Generate(request, timeout=timeout_s)
    try:
        async with asyncio.timeout(timeout_s + GRACE_S):
            return await _read(call, question, leave_after, read_s, began_s)
    except TimeoutError:
        return Answer(Ending.LOST, f"no end {GRACE_S:g} s after its deadline")
    except grpc.aio.AioRpcError as error:
        return _failed(error, time.monotonic() - began_s, timeout_s)
    finally:
        call.cancel()


def _failed(error: grpc.aio.AioRpcError, after_s: float, timeout_s: float) -> Answer:
    if error.code() in _TYPED:
        return Answer(Ending.TYPED_ERROR, error.code().name)
    if error.code() is grpc.StatusCode.CANCELLED and after_s >= timeout_s:
        # The server's reset at the deadline came before this process looked at its own clock.
        return Answer(Ending.TYPED_ERROR, grpc.StatusCode.DEADLINE_EXCEEDED.name)
    words = f"{error.code().name}: {error.details()}"
    return Answer(Ending.LOST, f"{words} after {after_s:.1f} s")


async def _read(
    call: Any, question: Question, leave_after: int | None, read_s: float, began_s: float
) -> Answer:
    got: list[int] = []
    first_s = last_s = began_s
    async for response in call:
        if response.WhichOneof("part") == "complete":
            if tuple(got) != question.answer:
                words = f"{len(got)} tokens, of them wrong {_wrong(got, question)}"
                return Answer(Ending.WRONG, words)
            step_s = None if read_s else (last_s - first_s) / max(len(got) - 1, 1)
            return Answer(Ending.RIGHT, "", first_s - began_s, step_s)
        last_s = time.monotonic()
        first_s = last_s if not got else first_s
        got += response.chunk.output_ids
        if _wrong(got, question):
            words = f"token {_wrong(got, question)} of {len(question.answer)}"
            return Answer(Ending.WRONG, words)
        if leave_after is not None and len(got) > leave_after:
            return Answer(Ending.CANCELLED)
        await asyncio.sleep(read_s)
    return Answer(Ending.LOST, f"the stream ended after {len(got)} tokens without an end message")


def _wrong(got: list[int], question: Question) -> int:
    """Returns the position, from 1, of the first wrong token; 0 when all are right."""
    for at, token in enumerate(got):
        if at >= len(question.answer) or token != question.answer[at]:
            return at + 1
    return 0
