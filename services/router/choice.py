"""The configured routing policy."""

import random

from baton.config import Qos, SplitPolicy
from baton.latency import CHUNK_TOKENS
from services.router.policies.latency import LatencyPolicy, LatencySettings
from services.router.policies.load import LeastLoadedPolicy, PowerOfTwoPolicy
from services.router.policies.mixed import MixedFleetPolicy
from services.router.policy import RoundRobinPolicy, RoutingPolicy, ScoreWeights, WeightedPolicy

_QOS = Qos()


def make_policy(
    split: SplitPolicy,
    min_cache_hit_ratio: float,
    qos: Qos = _QOS,
    rng: random.Random | None = None,
) -> RoutingPolicy:
    """Returns the configured policy."""
    # Ties must fall differently on each router, so the seed is the operating system's.
    rng = rng or random.Random()  # noqa: S311 - not for secrets
    if split.policy == "latency":
        return LatencyPolicy(latency_settings(split, qos), rng)
    inner = _make_unpredicting(split, min_cache_hit_ratio, rng)
    return MixedFleetPolicy(inner, split.prompt_length_threshold, split.prefill_queue_max)


def _make_unpredicting(
    split: SplitPolicy, min_cache_hit_ratio: float, rng: random.Random
) -> RoutingPolicy:
    match split.policy:
        case "weighted":
            return WeightedPolicy(_weights(split, min_cache_hit_ratio), rng)
        case "least_loaded":
            return LeastLoadedPolicy(rng)
        case "power_of_two":
            return PowerOfTwoPolicy(rng)
        case _:
            return RoundRobinPolicy()


def latency_settings(split: SplitPolicy, qos: Qos) -> LatencySettings:
    """Returns what the latency policy needs of the configuration."""
    return LatencySettings(
        tpot_price=qos.ttft_slo_ms / qos.tpot_slo_ms,
        chunk_tokens=CHUNK_TOKENS,
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
