"""How long a placement takes: index look-up, views of all workers, policy. No network."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from baton.blocks import block_hashes, root_hash
from baton.collector import quieten_collector
from baton.config import load_config
from baton.state.fleet import FleetView
from baton.state.members import Members, WorkerView
from baton.state.prefix_index import PrefixIndex
from baton.state.records import StatsReport, WorkerRecord, WorkerRole, WorkerStats
from bench.drive import percentiles_ms
from bench.prompts import PromptPlan
from services.router.candidates import Candidates
from services.router.choice import make_policy
from services.router.credits import InFlightCredits, Suspects
from services.router.model import ServedModel, load_served_model
from services.router.policy import RouteRequest, RoutingPolicy

PROMPT_TOKENS = 8192
WORKERS = 256
_BLOCK = 16
_KV_BYTES_PER_TOKEN = 2048
_GROUPS = 64
_HOLDERS = 4


@dataclass(frozen=True, slots=True)
class DecisionTimes:
    """Percentiles in milliseconds. `hashing` comes on top, once per request."""

    policy: str
    decision: dict[str, float]
    hashing: dict[str, float]


class _StandingFleet:
    """A view of a fleet that does not change, in place of one that reads Redis."""

    generation = 1

    def __init__(self, members: Members) -> None:
        self._members = members

    def workers(self, role: WorkerRole) -> Sequence[WorkerView]:
        return self._members.of_role(role)


def measure_decisions(
    decisions: int = 400, prompt_tokens: int = PROMPT_TOKENS, workers: int = WORKERS
) -> DecisionTimes:
    """Places `decisions` prompts; half of each prompt is cached by a few workers."""
    rng = random.Random(11)  # noqa: S311 - not for secrets
    model, index = load_served_model("baton-tiny"), PrefixIndex()
    fleet, config = _fleet(model, workers), load_config(environ={})
    prompts = PromptPlan(prompt_tokens, 16, prompt_tokens // 2, _GROUPS)
    root = root_hash(model.name)
    _fill(index, fleet, prompts, root, rng)
    candidates = Candidates(
        cast("FleetView", fleet), index, InFlightCredits(), Suspects(3.0), model
    )
    policy = make_policy(
        config.split_policy,
        config.cache.min_cache_hit_ratio,
        config.qos,
    )
    quieten_collector()  # as every service does
    hashing, deciding = [], []
    for number in range(decisions):
        ids = prompts.ids(number).tolist()
        began_s = time.perf_counter()
        hashes = block_hashes(ids, _BLOCK, root)
        hashed_s = time.perf_counter()
        _decide(candidates, policy, hashes, prompt_tokens)
        deciding.append(time.perf_counter() - hashed_s)
        hashing.append(hashed_s - began_s)
    return DecisionTimes(policy.name, percentiles_ms(deciding), percentiles_ms(hashing))


def _decide(
    candidates: Candidates, policy: RoutingPolicy, hashes: Sequence[int], tokens: int
) -> None:
    """Does what the router's dispatcher does to place one request."""
    cached = candidates.cached_tokens(hashes)
    decode = candidates.decode(cached)
    decision = policy.choose(RouteRequest(prompt_tokens=tokens), candidates.prefill(cached), decode)
    chosen = decision.decode
    candidates.predict(chosen.incarnation, hashes, chosen.cached_tokens)


def _fleet(model: ServedModel, workers: int) -> _StandingFleet:
    members = Members()
    now_s = time.monotonic()
    for number in range(workers):
        role = WorkerRole.PREFILL if number % 2 else WorkerRole.DECODE
        name = f"{role.value}-{number:03d}"
        members.join(
            WorkerRecord(
                worker_id=name,
                incarnation=name,
                role=role,
                address=f"127.0.0.1:{number}",
                started_at_s=0.0,
                model=model.name,
                context_length=1 << 20,
                tokenizer_digest=model.tokenizer_digest,
                block_size=_BLOCK,
                kv_blocks=8192,
            )
        )
        stats = WorkerStats(time.time(), number % 5, 0, 0, number % 7, 8192, 8192)
        # Figures as of far in the future never grow stale while the benchmark runs.
        members.report(StatsReport(name, name, stats), now_s + 3600)
    return _StandingFleet(members)


def _fill(
    index: PrefixIndex, fleet: _StandingFleet, prompts: PromptPlan, root: int, rng: random.Random
) -> None:
    everyone = [
        view.record.incarnation
        for role in (WorkerRole.PREFILL, WorkerRole.DECODE)
        for view in fleet.workers(role)
    ]
    for worker in everyone:
        index.add(worker)
    for group in range(_GROUPS):
        shared = prompts.ids(group)[: prompts.shared_tokens].tolist()
        hashes = block_hashes(shared, _BLOCK, root)
        for worker in rng.sample(everyone, _HOLDERS):
            index.store(worker, hashes)
