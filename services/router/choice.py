"""The configured routing policy."""

import random

from baton.config import Qos, SplitPolicy
from services.router.policies.latency import LatencyPolicy, LatencySettings
from services.router.policies.load import LeastLoadedPolicy, PowerOfTwoPolicy
from services.router.policy import RoundRobinPolicy, RoutingPolicy, ScoreWeights, WeightedPolicy

_QOS = Qos()
_TOKEN_BUDGET = 256


def make_policy(
    split: SplitPolicy,
    min_cache_hit_ratio: float,
    qos: Qos = _QOS,
    token_budget: int = _TOKEN_BUDGET,
    rng: random.Random | None = None,
) -> RoutingPolicy:
    """Returns the configured policy; `token_budget` is that of the workers' steps."""
    # Ties must fall differently on each router, so the seed is the operating system's.
    rng = rng or random.Random()  # noqa: S311 - not for secrets
    match split.policy:
        case "latency":
            return LatencyPolicy(latency_settings(split, qos, token_budget), rng)
        case "weighted":
            return WeightedPolicy(_weights(split, min_cache_hit_ratio), rng)
        case "least_loaded":
            return LeastLoadedPolicy(rng)
        case "power_of_two":
            return PowerOfTwoPolicy(rng)
        case "round_robin":
            return RoundRobinPolicy()


def latency_settings(split: SplitPolicy, qos: Qos, token_budget: int) -> LatencySettings:
    """Returns what the latency policy needs of the configuration."""
    return LatencySettings(
        tpot_price=qos.ttft_slo_ms / qos.tpot_slo_ms,
        chunk_tokens=token_budget,
        offload_above_tokens=split.prompt_length_threshold,
        prefill_queue_max=split.prefill_queue_max,
    )


def _weights(split: SplitPolicy, min_cache_hit_ratio: float) -> ScoreWeights:
    return ScoreWeights(
        prefix_cache=split.prefix_cache_weight,
        queue_length=split.queue_length_weight,
        decode_load=split.decode_load_weight,
        min_cache_hit_ratio=min_cache_hit_ratio,
        enable_hotspot_prevention=split.enable_hotspot_prevention,
    )
