"""The simulator beside the mesh: the same requests through both, compared.

The mesh is the real one: processes, Redis, gRPC, and either simulated engines or the embedded one.
What its workers measured of themselves becomes the simulator's hardware. With the chapter's policy
every decision is compared: the simulator asks its policy where the request should go and then sends
it where the mesh did, so that one difference does not make all later ones. Equally good workers are
one choice, since both decide between them by chance.
"""

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from baton.client import Completion, Prompt, RequestOptions, RouterClient
from baton.compute import ComputeOptions
from baton.local.plan import StackOptions
from baton.local.stack import Stack
from baton.requests import SamplingParams
from services.router.policy import Decision, DecodeView, PrefillView, RouteRequest, RoutingPolicy
from sim.calibrate import calibrate
from sim.engine.links import LinkSpec
from sim.fleet import FleetSpec
from sim.mesh import SimMesh
from sim.outcome import Outcome
from sim.policies import MeshTiming
from sim.results.metrics import quantile
from sim.setup import PolicySpec
from sim.workload import SimRequest

BLOCK = 16
BUDGET = 512


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


@dataclass(frozen=True, slots=True)
class Parity:
    """Both sides. `agreed` counts equal decisions: workers, local or remote, and the reason."""

    seen: Sequence[Seen]
    simulated: Sequence[Outcome]
    agreed: int
    differences: Sequence[str]
    hardware: str

    def error(self, what: str, share: float) -> float | None:
        """Returns the relative error of a quantile of "ttft" or "tpot"."""
        real = sorted(
            it.completion.timing.ttft_s if what == "ttft" else it.completion.timing.tpot_s or 0.0
            for it in self.seen
        )
        made = sorted((it.ttft_s if what == "ttft" else it.tpot_s) or 0.0 for it in self.simulated)
        actual, predicted = quantile(real, share), quantile(made, share)
        return abs(predicted - actual) / actual if actual and predicted is not None else None


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


async def compare(
    asks: Sequence[Ask], engine: str, prefill: int, decode: int, warm_up: Sequence[Ask] = ()
) -> Parity:
    """Runs the schedule through a mesh of its own, then through the simulator."""
    environ = {
        "BATON_ENGINE__KIND": engine,
        "BATON_SPLIT_POLICY__POLICY": "weighted",
        "BATON_QOS__ENABLE_EARLY_REJECTION": "false",
        "OMP_NUM_THREADS": "1",
    }
    options = StackOptions(
        prefill=prefill,
        decode=decode,
        router_port=0,
        environ=environ,
        compute=ComputeOptions(token_budget=BUDGET),
    )
    async with Stack(options) as stack, RouterClient(stack.router_address) as client:
        await _send_all(client, warm_up, first=1_000)
        seen = await _send_all(client, asks)
        # Workers report their figures several times a second.
        await asyncio.sleep(1.0)
        machine, (latency_s, byte_s) = await calibrate(stack.redis_url, engine)
    spec = FleetSpec(
        machine,
        prefill,
        decode,
        prefill_budget=BUDGET,
        mixed_budget=BUDGET,
        link=LinkSpec(1 / max(byte_s, 1e-12), latency_s),
    )
    return _simulate(asks, seen, spec)


def _simulate(asks: Sequence[Ask], seen: Sequence[Seen], spec: FleetSpec) -> Parity:
    policies = PolicySpec("weighted", admits_all=True).make(1)
    following = Following(policies.routing, [it.completion for it in seen])
    outcomes: list[Outcome] = []
    overhead_s = sorted(_overhead_s(it.completion) for it in seen)[len(seen) // 2]
    mesh = SimMesh(
        spec,
        BLOCK,
        replace(policies, routing=following),
        outcomes.append,
        timing=MeshTiming(route_s=overhead_s, hop_s=0.0),
        asks_oracle=False,
    )
    mesh.run(_requests(asks, seen))
    outcomes.sort(key=lambda it: it.request.arrival_s)
    differences = []
    for number, (real, made, same) in enumerate(zip(seen, outcomes, following.agreed, strict=True)):
        completion = real.completion
        said = (completion.is_remote_prefill, completion.prefill_reason, completion.cached_tokens)
        # The mesh counts what either worker held, also where the other one computed it again.
        would = (made.is_remote, str(made.reason), made.cached_tokens + made.vain_tokens)
        if said != would or not same:
            differences.append(f"{number}: mesh {said}, simulator {would}, same workers: {same}")
    return Parity(
        seen, outcomes, len(seen) - len(differences), differences, spec.hardware.describe()
    )


def _requests(asks: Sequence[Ask], seen: Sequence[Seen]) -> Iterator[SimRequest]:
    """Yields the requests as they were really sent."""
    for number, (ask, real) in enumerate(zip(asks, seen, strict=True)):
        yield replace(ask.simulated(number), arrival_s=real.sent_s)


def _overhead_s(completion: Completion) -> float:
    """Returns what of a TTFT no worker's cost model knows: tokens, permit, placement, admission."""
    timing = completion.timing
    return timing.tokenize_s + timing.admission_s + timing.route_s


async def _send_all(client: RouterClient, asks: Sequence[Ask], first: int = 0) -> list[Seen]:
    started_s = time.monotonic()
    tasks = []
    for number, ask in enumerate(asks):
        delay_s = ask.at_s - (time.monotonic() - started_s)
        await asyncio.sleep(max(0.0, delay_s))
        tasks.append(asyncio.create_task(_send(client, ask, first + number, started_s)))
    return list(await asyncio.gather(*tasks))


async def _send(client: RouterClient, ask: Ask, number: int, started_s: float) -> Seen:
    prompt = Prompt(input_ids=ask.input_ids(number))
    sampling = SamplingParams(max_tokens=ask.output_tokens, ignore_eos=True)
    sent_s = time.monotonic() - started_s
    parts = [part async for part in client.generate(prompt, RequestOptions(sampling=sampling))]
    completion = parts[-1]
    assert isinstance(completion, Completion)
    return Seen(sent_s, completion)
