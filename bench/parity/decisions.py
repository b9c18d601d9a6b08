"""Every decision of a mesh of simulated engines, beside the simulator's.

The simulator asks its policy where the request should go and then sends it where the mesh did, so
that one difference does not make all later ones. Equally good workers are one choice, since both
decide between them by chance.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from baton.client import Completion, RouterClient
from baton.local.stack import Stack
from bench.parity.asks import BLOCK, Ask, Seen, as_sent, send_all
from bench.parity.stack import BUDGET, options
from services.router.policy import Decision, DecodeView, PrefillView, RouteRequest, RoutingPolicy
from sim.calibrate import calibrate
from sim.fleet import FleetSpec
from sim.mesh import SimMesh
from sim.outcome import Outcome
from sim.setup import PolicySpec


@dataclass(frozen=True, slots=True)
class Decided:
    """Both sides. `agreed` counts equal decisions: workers, local or remote, and the reason."""

    simulated: Sequence[Outcome]
    agreed: int
    differences: Sequence[str]


@dataclass(slots=True)
class Following:
    """The chapter's policy; each request goes where the mesh sent it, and it is noted whether the
    policy would have sent it there too."""

    policy: RoutingPolicy
    placed: Sequence[Completion]
    name: str = "weighted"
    agreed: list[bool] = field(default_factory=list)

    def choose(
        self, request: RouteRequest, prefill: Sequence[PrefillView], decode: Sequence[DecodeView]
    ) -> Decision:
        """See RoutingPolicy."""
        decision = self.policy.choose(request, prefill, decode)
        real = self.placed[len(self.agreed)]
        scores = {it.worker_id: it.total for it in decision.decode_scores}
        is_equal = scores[real.decode_worker_id] >= max(scores.values()) - 1e-9
        candidates = list(decision.prefill_candidates)
        if real.is_remote_prefill:
            points = {it.worker_id: it.total for it in decision.prefill_scores}
            is_equal &= points[real.prefill_worker_id] >= max(points.values()) - 1e-9
            candidates.sort(key=lambda view: view.worker_id != real.prefill_worker_id)
        self.agreed.append(is_equal)
        chosen = next(view for view in decode if view.worker_id == real.decode_worker_id)
        return replace(decision, decode=chosen, prefill_candidates=tuple(candidates))


async def compare_decisions(
    asks: Sequence[Ask], prefill: int, decode: int, warm_up: Sequence[Ask]
) -> Decided:
    """Runs the schedule through a mesh of simulated engines, then through the simulator."""
    made = options("simulated", prefill, decode)
    async with Stack(made) as stack, RouterClient(stack.router_address) as client:
        await send_all(client, warm_up, first=1_000)
        seen = await send_all(client, asks)
        # Workers report their figures several times a second.
        await asyncio.sleep(1.0)
        machine, _ = await calibrate(stack.redis_url, "simulated")
    return _simulate(
        asks, seen, FleetSpec(machine, prefill, decode, prefill_budget=BUDGET, mixed_budget=BUDGET)
    )


def _simulate(asks: Sequence[Ask], seen: Sequence[Seen], spec: FleetSpec) -> Decided:
    policies = PolicySpec("weighted", admits_all=True).make(1)
    following = Following(policies.routing, [it.completion for it in seen])
    outcomes: list[Outcome] = []
    policies = replace(policies, routing=following)
    mesh = SimMesh(spec, BLOCK, policies, outcomes.append, asks_oracle=False)
    mesh.run(as_sent(asks, seen))
    outcomes.sort(key=lambda it: it.request.arrival_s)
    differences = []
    for number, (real, made, same) in enumerate(zip(seen, outcomes, following.agreed, strict=True)):
        completion = real.completion
        said = (completion.is_remote_prefill, completion.prefill_reason, completion.cached_tokens)
        # The mesh counts what either worker held, also where the other one computed it again.
        would = (made.is_remote, str(made.reason), made.cached_tokens + made.vain_tokens)
        if said != would or not same:
            differences.append(f"{number}: mesh {said}, simulator {would}, same workers: {same}")
    return Decided(outcomes, len(seen) - len(differences), differences)
