"""Small fleets and workloads whose times can be worked out by hand."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sim.costs.hardware import Hardware
from sim.costs.model import StepCosts
from sim.engine.links import LinkSpec
from sim.fleet import FleetSpec
from sim.mesh import SimMesh
from sim.outcome import Outcome
from sim.policies import MeshTiming
from sim.setup import PolicySpec
from sim.workload import SimRequest

BLOCK = 16
KV_BYTES = 1000
NO_DELAY = MeshTiming(route_s=0.0, hop_s=0.0)

# A millisecond per prompt token, and steps of 10 ms whatever runs in them.
PLAIN = StepCosts(prefill=(0.0, 1e-3, 0.0), decode=(10e-3, 0.0, 0.0))


@dataclass(frozen=True)
class ListTrace:
    """Requests as given."""

    given: Sequence[SimRequest]
    name: str = "list"
    block_tokens: int = BLOCK

    def requests(self, seed: int, rate: float = 1.0) -> Iterator[SimRequest]:
        for request in self.given:
            yield SimRequest(
                request.arrival_s / rate,
                request.prompt_tokens,
                request.output_tokens,
                request.hashes,
                request.priority,
            )


def fleet(
    prefill: int = 0,
    decode: int = 0,
    aggregated: int = 0,
    *,
    costs: StepCosts = PLAIN,
    kv_tokens: int = 1600,
    budget: int = 128,
    link: LinkSpec | None = None,
    max_running: int = 64,
) -> FleetSpec:
    hardware = Hardware("test", "made up", costs, kv_tokens, KV_BYTES)
    return FleetSpec(
        hardware,
        prefill,
        decode,
        aggregated,
        prefill_budget=budget,
        mixed_budget=budget,
        max_running=max_running,
        link=link or LinkSpec(bandwidth=1e9, latency_s=0.0),
    )


def replay(
    spec: FleetSpec,
    requests: Sequence[SimRequest],
    *,
    routing: str = "weighted",
    admits_all: bool = True,
    seed: int = 1,
    timing: MeshTiming = NO_DELAY,
) -> tuple[SimMesh, list[Outcome]]:
    """Returns the mesh after the run and the outcomes, in the order of the requests."""
    outcomes: list[Outcome] = []
    policies = PolicySpec(routing, admits_all=admits_all).make(seed)
    mesh = SimMesh(spec, BLOCK, policies, outcomes.append, timing=timing)
    mesh.run(iter(requests))
    outcomes.sort(key=lambda outcome: outcome.request.arrival_s)
    return mesh, outcomes
