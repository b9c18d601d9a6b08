"""TTFT and TPOT of a mesh of embedded engines, one prefill and one decode worker on two cores,
beside the simulator's on the same requests.

The requests come in parts with a round of probes before and after each. The simulator is given what
the two rounds around a part measured on other requests, and decides everything by itself: a
machine's speed differs by a tenth from one minute to the next. How much longer tokens take where
requests come and go than in the probes is taken from the part before, so that the first part is
compared with nothing. What others did on the machine meanwhile is measured too: both sides see it,
but not alike.
"""

import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from statistics import median

from baton.client import RouterClient, Timing
from baton.config import Config
from baton.local.stack import Stack
from bench.parity.asks import BLOCK, Ask, Seen, as_sent, send_all
from bench.parity.meter import Meter
from bench.parity.probe import Probe
from bench.parity.probed import Probed, probed
from bench.parity.stack import BUDGET, options
from sim.calibrate import kv_of
from sim.engine.links import LinkSpec
from sim.fleet import FleetSpec
from sim.mesh import SimMesh
from sim.outcome import Outcome
from sim.policies import MeshTiming
from sim.results.metrics import quantile
from sim.setup import PolicySpec

QUANTILES = (("p50", 0.50), ("p99", 0.99))
MEASURES = ("ttft", "tpot")
_SHORTEST, _LONGEST = 60, 1640


@dataclass(frozen=True, slots=True)
class Part:
    """Requests that both sides got, and what the simulator's side was made of."""

    seen: Sequence[Seen]
    simulated: Sequence[Outcome]
    probed: Probed


@dataclass(frozen=True, slots=True)
class Parity:
    """Both sides, request by request. `others` is the share of the machine's time that processes
    took which are not the mesh's; None where that cannot be told."""

    parts: Sequence[Part]
    others: float | None

    def both(self, what: str, share: float) -> tuple[float, float]:
        """Returns a quantile of "ttft" or "tpot" of all parts: the mesh's and the simulator's."""
        seen = chain.from_iterable(part.seen for part in self.parts)
        simulated = chain.from_iterable(part.simulated for part in self.parts)
        real = sorted(_seconds(it.completion.timing, what) for it in seen)
        made = sorted(_seconds(it, what) for it in simulated)
        return quantile(real, share) or 0.0, quantile(made, share) or 0.0

    def error(self, what: str, share: float) -> float:
        """Returns the relative error of a quantile."""
        real, made = self.both(what, share)
        return abs(made - real) / real

    def alone(self) -> "list[Parity]":
        """Returns each part by itself."""
        return [Parity([part], self.others) for part in self.parts]


def _seconds(times: Timing | Outcome, what: str) -> float:
    return (times.ttft_s if what == "ttft" else times.tpot_s) or 0.0


def schedule(seed: int, count: int, gap_s: float) -> list[Ask]:
    """Returns prompts of all lengths with short answers, Poisson arrivals.

    The logarithm of the length is uniform: with a few lengths only, the median would be that of
    one length on one side and of another on the other.
    """
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    asks, now_s = [], 0.0
    for number in range(count):
        now_s += rng.expovariate(1 / gap_s)
        prompt = round(_SHORTEST * (_LONGEST / _SHORTEST) ** rng.random())
        asks.append(Ask(now_s, prompt, rng.randint(16, 64), family=number + 1000 * seed))
    return asks


async def compare_times(asks: Sequence[Ask], parts: int = 4) -> Parity:
    """Sends a mesh the schedule in `parts` and one before them that only tells what company costs,
    probes it before and after each, simulates the same."""
    made = options("torch", 1, 1)
    size = -(-len(asks) // (parts + 1))
    starts = range(0, len(asks), size)
    async with Stack(made) as stack, RouterClient(stack.router_address) as client:
        kv_tokens, kv_bytes = await kv_of(stack.redis_url)
        probe = Probe(client)
        await probe.warm_up()
        meter = Meter([*stack.processes.values(), os.getpid()])
        rounds, seen = [await probe.round()], []
        for first in starts:
            part = asks[first : first + size]
            meter.begin()
            seen.append(await send_all(client, part, first, time.monotonic() - part[0].at_s))
            meter.end()
            rounds.append(await probe.round())
    compared, slower = list[Part](), 1.0
    for first, real, around in zip(starts, seen, pairwise(rounds), strict=True):
        known, part = probed(around, BUDGET, kv_tokens, kv_bytes), asks[first : first + size]
        among = known.among(slower)
        compared.append(Part(real, simulate(part, real, among), among))
        slower = company(real, simulate(part, real, known))
    return Parity(compared[1:], meter.others)


def company(seen: Sequence[Seen], simulated: Sequence[Outcome]) -> float:
    """Returns how many times as long as simulated a token of the mesh took, at the median."""
    pairs = zip(seen, simulated, strict=True)
    return median(
        real.completion.timing.tpot_s / made.tpot_s
        for real, made in pairs
        if real.completion.timing.tpot_s and made.tpot_s
    )


def simulate(asks: Sequence[Ask], seen: Sequence[Seen], known: Probed) -> list[Outcome]:
    """Replays the requests as they were sent."""
    spec = FleetSpec(
        known.decode,
        1,
        1,
        prefill_budget=BUDGET,
        mixed_budget=BUDGET,
        link=LinkSpec(latency_s=known.transfer_s),
        prefill_hardware=known.prefill,
        sharing=known.sharing,
    )
    config = Config()
    qos = config.qos.model_copy(update={"enable_early_rejection": False})
    policies = PolicySpec("weighted", config.model_copy(update={"qos": qos})).make(1)
    outcomes: list[Outcome] = []
    timing = MeshTiming(route_s=known.overhead_s, hop_s=0.0)
    mesh = SimMesh(spec, BLOCK, policies, outcomes.append, timing=timing, asks_oracle=False)
    mesh.run(as_sent(asks, seen))
    outcomes.sort(key=lambda it: it.request.arrival_s)
    return outcomes
