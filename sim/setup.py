"""Makes the services' policy objects, as their services do, from a configuration."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from baton.config import Config
from baton.latency import CHUNK_TOKENS
from services.admission.policy import QosLimits, QueueEstimatePolicy
from services.decode.policy import ThresholdSplitPolicy
from services.router.policies.latency import LatencyPolicy, LatencySettings
from services.router.policies.load import LeastLoadedPolicy, PowerOfTwoPolicy
from services.router.policy import RoundRobinPolicy, RoutingPolicy, ScoreWeights, WeightedPolicy
from sim.admission import OpenDoor, SimDesk
from sim.engine.events import EventLoop
from sim.mesh import Policies

MakeRouting = Callable[[Config, random.Random, int], RoutingPolicy]
"""Makes a policy from the settings, a source of chance, and the tokens of a local chunk."""


def _weighted(config: Config, rng: random.Random, _: int) -> RoutingPolicy:
    split = config.split_policy
    weights = ScoreWeights(
        prefix_cache=split.prefix_cache_weight,
        queue_length=split.queue_length_weight,
        decode_load=split.decode_load_weight,
        min_cache_hit_ratio=config.cache.min_cache_hit_ratio,
        enable_hotspot_prevention=split.enable_hotspot_prevention,
    )
    return WeightedPolicy(weights, rng)


def _latency(config: Config, rng: random.Random, chunk_tokens: int) -> RoutingPolicy:
    split, qos = config.split_policy, config.qos
    settings = LatencySettings(
        tpot_price=qos.ttft_slo_ms / qos.tpot_slo_ms,
        chunk_tokens=chunk_tokens,
        offload_above_tokens=split.prompt_length_threshold,
        prefill_queue_max=split.prefill_queue_max,
    )
    return LatencyPolicy(settings, rng)


ROUTING: dict[str, MakeRouting] = {
    "weighted": _weighted,
    "latency": _latency,
    "least_loaded": lambda config, rng, chunk: LeastLoadedPolicy(rng),
    "power_of_two": lambda config, rng, chunk: PowerOfTwoPolicy(rng),
    "round_robin": lambda config, rng, chunk: RoundRobinPolicy(),
}


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """Which policies decide. `admits_all` leaves admission out, to see what routing alone does.

    `chunk_tokens` is the most of a prompt that shares a step with running streams.
    """

    routing: str = "weighted"
    config: Config = field(default_factory=Config)
    admits_all: bool = False
    chunk_tokens: int = CHUNK_TOKENS

    def __post_init__(self) -> None:
        if self.routing not in ROUTING:
            raise ValueError(f"no routing policy {self.routing!r}; known are {', '.join(ROUTING)}")

    def make(self, seed: int) -> Policies:
        """Returns fresh policy objects; their random choices follow from `seed`."""
        split = self.config.split_policy
        rng = random.Random(f"routing {seed}")  # noqa: S311 - not for secrets
        return Policies(
            routing=ROUTING[self.routing](self.config, rng, self.chunk_tokens),
            split=ThresholdSplitPolicy(split.prompt_length_threshold, split.prefill_queue_max),
            prefill_queue_max=split.prefill_queue_max,
            offload_above_tokens=split.prompt_length_threshold,
            desk=self._desk(seed),
        )

    def _desk(self, seed: int) -> Callable[[EventLoop, int, int], SimDesk | OpenDoor]:
        if self.admits_all:
            return lambda loop, prefill, decode: OpenDoor()
        qos = self.config.qos
        limits = QosLimits(
            enable_early_rejection=qos.enable_early_rejection,
            low_priority_threshold_s=qos.low_priority_threshold_ms / 1e3,
            reject_on_slo_violation=qos.reject_on_slo_violation,
            ttft_slo_s=qos.ttft_slo_ms / 1e3,
            max_queue_length=qos.max_queue_length,
        )
        policy = QueueEstimatePolicy(
            limits,
            random.Random(f"admission {seed}"),  # noqa: S311 - not for secrets
        )
        return lambda loop, prefill, decode: SimDesk(loop, policy, prefill, decode)
