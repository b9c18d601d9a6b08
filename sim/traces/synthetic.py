"""Made-up workloads, for questions that no recorded trace asks and for machines without traces."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from baton.requests import Priority
from sim.traces.arrivals import Arrivals
from sim.workload import SimRequest

BLOCK_TOKENS = 64
_CONTENT_BITS = 62


@dataclass(frozen=True, slots=True)
class MixTrace:
    """The chapter's mix: half short prompts, half long ones, some of them sharing a prefix.

    Short prompts have 16 to `threshold` tokens and long ones twice `threshold` to `longest`, each
    uniformly. A share `reuse` of the long ones continues one of `prefixes` common beginnings of
    half the prompt's length; all else is unique. Outputs are 32 to 256 tokens. `high` and `low`
    are the shares of requests with those priorities.
    """

    count: int = 2000
    arrivals: Arrivals = field(default_factory=lambda: Arrivals(20.0))
    threshold: int = 256
    longest: int = 4096
    long_share: float = 0.5
    reuse: float = 0.4
    prefixes: int = 16
    high: float = 0.0
    low: float = 0.0
    block_tokens: int = BLOCK_TOKENS

    @property
    def name(self) -> str:
        """The mix in a few words."""
        return f"mix of {self.count} prompts, {self.long_share:.0%} over {self.threshold} tokens"

    def requests(self, seed: int, rate: float = 1.0) -> Iterator[SimRequest]:
        """See `Trace`."""
        rng = random.Random(seed)  # noqa: S311 - not for secrets
        for _, arrival_s in zip(range(self.count), self.arrivals.times(rng), strict=False):
            is_long = rng.random() < self.long_share
            low = 2 * self.threshold if is_long else 16
            tokens = rng.randint(low, self.longest if is_long else self.threshold)
            yield SimRequest(
                arrival_s / rate,
                tokens,
                rng.randint(32, 256),
                self._hashes(rng, tokens, is_long=is_long),
                self._priority(rng),
            )

    def _hashes(self, rng: random.Random, tokens: int, *, is_long: bool) -> tuple[int, ...]:
        blocks = tokens // self.block_tokens
        shared = blocks // 2 if is_long and rng.random() < self.reuse else 0
        # Prefixes count up from 0 in ranges of their own; unique blocks are random and far above.
        root = rng.randrange(self.prefixes) * self.longest
        unique = [
            1 << _CONTENT_BITS | rng.getrandbits(_CONTENT_BITS) for _ in range(shared, blocks)
        ]
        return (*range(root, root + shared), *unique)

    def _priority(self, rng: random.Random) -> Priority:
        draw = rng.random()
        if draw < self.high:
            return Priority.HIGH
        return Priority.LOW if draw < self.high + self.low else Priority.NORMAL


@dataclass(frozen=True, slots=True)
class ConversationTrace:
    """Sessions of several turns that each repeat all before them, under one common beginning.

    Stands in for Mooncake's conversation trace, whose mean lengths, sharing and load it follows
    roughly, where that is not at hand. The first block is the same in all requests.
    """

    count: int = 2000
    per_s: float = 3.4
    turns: int = 4
    think_s: float = 60.0
    block_tokens: int = 512

    @property
    def name(self) -> str:
        """The workload in a few words."""
        return f"generated conversations, {self.count} requests"

    def requests(self, seed: int, rate: float = 1.0) -> Iterator[SimRequest]:
        """See `Trace`. Sessions overlap, so this sorts; at most `count` requests are held."""
        rng = random.Random(seed)  # noqa: S311 - not for secrets
        starts = Arrivals(self.per_s / self.turns).times(rng)
        made: list[SimRequest] = []
        for session, start_s in zip(range(-(-self.count // self.turns)), starts, strict=False):
            made += self._session(rng, session + 1, start_s, rate)
        made.sort(key=lambda request: request.arrival_s)
        yield from made[: self.count]

    def _session(
        self, rng: random.Random, session: int, start_s: float, rate: float
    ) -> Iterator[SimRequest]:
        tokens = 0
        for _ in range(self.turns):
            tokens += min(120_000 - tokens, int(rng.lognormvariate(8.0, 1.2)) + 64)
            output = rng.randint(50, 640)
            blocks = tokens // self.block_tokens
            own = range(session << 20, (session << 20) + max(0, blocks - 1))
            hashes = (0, *own) if blocks else ()
            yield SimRequest(start_s / rate, max(1, tokens), output, hashes)
            tokens += output
            start_s += rng.expovariate(1 / self.think_s)


@dataclass(frozen=True, slots=True)
class InterferenceTrace:
    """Short chats, and beside them long prompts that want one token: pure prefill load.

    Two of these that differ in `has_long` have the same chats, so that what the long prompts do to
    the chats' TPOT can be read off.
    """

    has_long: bool
    count: int = 600
    chats_per_s: float = 4.0
    prompts_per_s: float = 1.5
    prompt_tokens: int = 8192
    block_tokens: int = BLOCK_TOKENS

    @property
    def name(self) -> str:
        """The workload in a few words."""
        return f"{self.count} chats, {'with' if self.has_long else 'without'} long prompts beside"

    def requests(self, seed: int, rate: float = 1.0) -> Iterator[SimRequest]:
        """See `Trace`."""
        rng = random.Random(f"chats {seed}")  # noqa: S311 - not for secrets
        chats = zip(range(self.count), Arrivals(self.chats_per_s).times(rng), strict=False)
        longs = Arrivals(self.prompts_per_s).times(
            random.Random(f"prompts {seed}")  # noqa: S311 - not for secrets
        )
        next_long_s = next(longs)
        for _, arrival_s in chats:
            while self.has_long and next_long_s < arrival_s:
                yield SimRequest(next_long_s / rate, self.prompt_tokens, 1)
                next_long_s = next(longs)
            yield SimRequest(arrival_s / rate, rng.randint(32, 256), rng.randint(64, 384))
