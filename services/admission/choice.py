"""The configured door: policy, limits and tenants from the configuration."""

import random
from collections.abc import Callable, Mapping

from baton.config import Qos
from services.admission.door import Door
from services.admission.ladder import Ladder
from services.admission.policies.queue_estimate import QueueEstimatePolicy
from services.admission.policies.slo import PredictivePolicy, SloNowPolicy
from services.admission.policy import AdmissionPolicy, QosLimits
from services.admission.tenants import TenantGate, TenantLimit

POLICIES: Mapping[str, Callable[[QosLimits], AdmissionPolicy]] = {
    "predictive": PredictivePolicy,
    "slo_now": SloNowPolicy,
    "queue_estimate": QueueEstimatePolicy,
}


def limits_of(qos: Qos) -> QosLimits:
    """Returns what policies enforce."""
    return QosLimits(
        enable_early_rejection=qos.enable_early_rejection,
        low_priority_threshold_s=qos.low_priority_threshold_ms / 1e3,
        reject_on_slo_violation=qos.reject_on_slo_violation,
        ttft_slo_s=qos.ttft_slo_ms / 1e3,
        tpot_slo_s=qos.tpot_slo_ms / 1e3,
    )


def make_door(qos: Qos, rng: random.Random, *, degrades: bool = True) -> Door:
    """Returns the door that the configuration describes."""
    limits = limits_of(qos)
    tenants = {
        name: TenantLimit(limit.requests_per_s, limit.concurrent, limit.weight)
        for name, limit in qos.tenants.items()
    }
    policy = POLICIES[qos.policy](limits)
    return Door(policy, limits, TenantGate(tenants), rng, Ladder() if degrades else None)
