"""TTFT and TPOT of a mesh of embedded engines, one prefill and one decode worker on two cores,
beside the simulator's on the same requests.

The simulator is given what `Probe` measured on other requests, and decides everything by itself.
What others did on the machine meanwhile is measured too: both sides see it, but not alike.
"""

import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from baton.client import RouterClient
from baton.config import Config
from baton.local.stack import Stack
from bench.parity.asks import BLOCK, Ask, Seen, as_sent, send_all
from bench.parity.meter import Meter
from bench.parity.probe import Probe, Probed
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
_LENGTHS = (60, 120, 200, 400, 800, 1200, 1600)


@dataclass(frozen=True, slots=True)
class Parity:
    """Both sides, request by request. `others` is the share of the machine's time that processes
    took which are not the mesh's; None where that cannot be told."""

    asks: Sequence[Ask]
    seen: Sequence[Seen]
    simulated: Sequence[Outcome]
    probed: Probed
    others: float | None

    def both(self, what: str, share: float) -> tuple[float, float]:
        """Returns a quantile of "ttft" or "tpot": the mesh's and the simulator's, in seconds."""
        times = [it.completion.timing for it in self.seen]
        real = sorted(it.ttft_s if what == "ttft" else it.tpot_s or 0.0 for it in times)
        made = sorted((it.ttft_s if what == "ttft" else it.tpot_s) or 0.0 for it in self.simulated)
        return quantile(real, share) or 0.0, quantile(made, share) or 0.0

    def error(self, what: str, share: float) -> float:
        """Returns the relative error of a quantile."""
        real, made = self.both(what, share)
        return abs(made - real) / real


def schedule(seed: int, count: int, gap_s: float) -> list[Ask]:
    """Returns prompts of several lengths with short answers, Poisson arrivals."""
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    asks, now_s = [], 0.0
    for number in range(count):
        now_s += rng.expovariate(1 / gap_s)
        prompt = rng.choice(_LENGTHS) + rng.randrange(40)
        asks.append(Ask(now_s, prompt, rng.randint(16, 64), family=number + 1000 * seed))
    return asks


async def compare_times(asks: Sequence[Ask], rounds: int = 4) -> Parity:
    """Sends a mesh the schedule in parts, probes it before each, and simulates the same."""
    made = options("torch", 1, 1)
    seen: list[Seen] = []
    async with Stack(made) as stack, RouterClient(stack.router_address) as client:
        probe = Probe(client, BUDGET, *await kv_of(stack.redis_url))
        await probe.warm_up()
        meter = Meter([*stack.processes.values(), os.getpid()])
        began_s = time.monotonic()
        size = -(-len(asks) // rounds)
        for first in range(0, len(asks), size):
            await probe.round()
            part = asks[first : first + size]
            started_s = time.monotonic() - part[0].at_s
            meter.begin()
            sent = await send_all(client, part, first, started_s)
            meter.end()
            late_s = started_s - began_s
            seen += [replace(it, sent_s=it.sent_s + late_s) for it in sent]
    probed = probe.result()
    return Parity(asks, seen, simulate(asks, seen, probed), probed, meter.others)


def simulate(asks: Sequence[Ask], seen: Sequence[Seen], probed: Probed) -> list[Outcome]:
    """Replays the requests as they were sent."""
    spec = FleetSpec(
        probed.decode,
        1,
        1,
        prefill_budget=BUDGET,
        mixed_budget=BUDGET,
        link=LinkSpec(latency_s=probed.transfer_s),
        prefill_hardware=probed.prefill,
        sharing=probed.sharing,
    )
    config = Config()
    qos = config.qos.model_copy(update={"enable_early_rejection": False})
    policies = PolicySpec("weighted", config.model_copy(update={"qos": qos})).make(1)
    outcomes: list[Outcome] = []
    timing = MeshTiming(route_s=probed.overhead_s, hop_s=0.0)
    mesh = SimMesh(spec, BLOCK, policies, outcomes.append, timing=timing, asks_oracle=False)
    mesh.run(as_sent(asks, seen))
    outcomes.sort(key=lambda it: it.request.arrival_s)
    return outcomes
