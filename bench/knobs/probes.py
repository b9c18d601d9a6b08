"""Which setting is tried at which other value, on which workload, and which have no degree."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from baton.config import Config

CONVERSATION = "conversation"
OVERLOAD = "overload"
TENANTS = "tenants"
DAY = "day"
MESH = "mesh"
SPANS = "spans"

_PROMISE = {"qos.ttft_slo_ms": 30_000, "qos.tpot_slo_ms": 50}
_WEIGHTED = {"split_policy.policy": "weighted", **_PROMISE}
_TARGETS = {
    "qos.ttft_slo_ms": 30_000,
    "qos.tpot_slo_ms": 100,
    "qos.low_priority_threshold_ms": 7_500,
}
_LIMITS = {"autoscale.decode.max_replicas": 8, "autoscale.prefill.max_replicas": 8}
_THRESHOLDS = {"autoscale.policy": "thresholds", **_LIMITS}
# Load that queues do not show keeps from acting.
_QUEUES = {
    **_THRESHOLDS,
    "autoscale.prefill.scale_up.gpu_utilization": 100,
    "autoscale.decode.scale_up.kv_cache_usage": 100,
}
_SMALL_POOL = {"cache.kv_memory_mib": 16}


@dataclass(frozen=True, slots=True)
class Probe:
    """A setting, other values than its default, and a workload; `given` is set in all runs.

    `base` stands for the default where that says nothing on this workload.
    """

    knob: str
    others: tuple[object, ...]
    workload: str
    given: Mapping[str, object] = field(default_factory=dict)
    base: object = None


PROBES = (
    Probe(
        "split_policy.policy",
        ("weighted", "least_loaded", "power_of_two", "round_robin"),
        CONVERSATION,
        _PROMISE,
    ),
    Probe("split_policy.prompt_length_threshold", (4096,), CONVERSATION, _WEIGHTED),
    Probe("split_policy.prefill_queue_max", (2,), CONVERSATION, _WEIGHTED),
    Probe("split_policy.prefix_cache_weight", (0.0,), CONVERSATION, _WEIGHTED),
    Probe("split_policy.queue_length_weight", (0.0,), CONVERSATION, _WEIGHTED),
    Probe("split_policy.decode_load_weight", (0.0,), CONVERSATION, _WEIGHTED),
    Probe("split_policy.enable_hotspot_prevention", (False,), CONVERSATION, _WEIGHTED),
    Probe("cache.reuse_prefix", (False,), MESH),
    Probe("cache.min_cache_hit_ratio", (0.1,), CONVERSATION, _WEIGHTED),
    Probe("cache.block_size", (64,), MESH),
    Probe("cache.kv_memory_mib", (16,), MESH),
    Probe("cache.host_memory_mib", (256,), MESH, _SMALL_POOL),
    Probe("autoscale.policy", ("thresholds",), DAY, _LIMITS),
    Probe("autoscale.prefill.min_replicas", (3,), DAY, _LIMITS),
    Probe("autoscale.prefill.max_replicas", (1,), DAY, _LIMITS, 8),
    Probe("autoscale.prefill.scale_up.queue_length", (3,), DAY, _QUEUES),
    Probe("autoscale.prefill.scale_up.gpu_utilization", (50.0,), DAY, _THRESHOLDS),
    Probe("autoscale.prefill.scale_down.queue_length", (0,), DAY, _THRESHOLDS),
    Probe("autoscale.prefill.scale_down.gpu_utilization", (10.0,), DAY, _THRESHOLDS),
    Probe("autoscale.decode.min_replicas", (3,), DAY, _LIMITS),
    Probe("autoscale.decode.max_replicas", (1,), DAY, _LIMITS, 8),
    Probe("autoscale.decode.scale_up.queue_length", (5,), DAY, _QUEUES),
    Probe("autoscale.decode.scale_up.kv_cache_usage", (35.0,), DAY, _THRESHOLDS),
    Probe("autoscale.decode.scale_down.queue_length", (0,), DAY, _THRESHOLDS),
    Probe("autoscale.decode.scale_down.kv_cache_usage", (10.0,), DAY, _THRESHOLDS),
    Probe("qos.enable_early_rejection", (False,), OVERLOAD, _TARGETS),
    Probe("qos.low_priority_threshold_ms", (2_000,), OVERLOAD, _TARGETS, 7_500),
    Probe("qos.reject_on_slo_violation", (False,), OVERLOAD, _TARGETS),
    Probe("qos.ttft_slo_ms", (10_000,), OVERLOAD, _TARGETS, 30_000),
    Probe("qos.tpot_slo_ms", (60,), OVERLOAD, _TARGETS, 100),
    Probe("qos.policy", ("slo_now", "queue_estimate"), OVERLOAD, _TARGETS),
    Probe("qos.tenants", ({"a": {"weight": 3}}, {"a": {"concurrent": 4}}), TENANTS, _TARGETS),
    Probe("mesh.otlp_endpoint", ("a receiver",), SPANS),
)

WITHOUT_DEGREE = {
    "model": "Another model: other answers and other costs.",
    "engine.kind": "Another engine: compared in benchmarks.md.",
    "engine.sglang": "SGLang's own arguments.",
    "qos.fail_closed": "All or nothing: while no admission service answers, these classes are "
    "refused.",
    "mesh.redis_url": "An address.",
    "mesh.host": "An address.",
}
"""Settings of which there is no more or less to measure, with the reason."""


def configured(settings: Mapping[str, object]) -> Config:
    """Returns the defaults with these settings, which are named by their paths."""
    values: dict[str, Any] = {}
    for path, value in settings.items():
        at = values
        *sections, name = path.split(".")
        for section in sections:
            at = at.setdefault(section, {})
        at[name] = value
    return Config.model_validate(values)
