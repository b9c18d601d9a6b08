"""Fleets and policies for the autoscaler's tests."""

from baton.latency import CostModel
from baton.traffic import Traffic
from services.autoscaler.policy import ThresholdPolicy, Thresholds
from services.autoscaler.sizing import Slo
from services.autoscaler.slo_policy import SloPolicy, SloSettings
from services.autoscaler.state import Bounds, FleetState, PoolState

COSTS = CostModel(prefill=(0.005, 2e-4, 1e-9), step=(0.005, 5e-4, 1e-7))
SLO = Slo(ttft_s=1.0, tpot_s=0.02)


def slo_policy(**changes: object) -> SloPolicy:
    """Returns a policy that shrinks soon and remembers no bursts."""
    settings = {
        "prefill": Bounds(1, 10),
        "decode": Bounds(1, 10),
        "budget": 20,
        "hold_s": 30.0,
        "learn_s": 0.0,
        "burst_memory_s": 5.0,
        "start_s": 10.0,
        "flips": False,
        **changes,
    }
    return SloPolicy(SloSettings(SLO, **settings))  # type: ignore[arg-type]


def threshold_policy(minimum: int = 1, maximum: int = 4) -> ThresholdPolicy:
    """Returns the chapter's thresholds."""
    bounds = Bounds(minimum, maximum)
    return ThresholdPolicy(Thresholds(bounds, 8, 2, 0.8, 0.4), Thresholds(bounds, 16, 4, 0.75, 0.3))


def fleet(
    prefill: PoolState | int = 1,
    decode: PoolState | int = 1,
    traffic: Traffic | None = None,
    *,
    is_fresh: bool = True,
) -> FleetState:
    """Returns a fleet; a number stands for as many idle workers."""
    pools = [
        PoolState(ready=it, kv_tokens=50_000, costs=COSTS) if isinstance(it, int) else it
        for it in (prefill, decode)
    ]
    return FleetState(pools[0], pools[1], traffic or Traffic(), is_fresh)


def traffic_at(now_s: float, per_s: float, prompt: int = 1500, output: int = 64) -> Traffic:
    """Returns the counters after `now_s` seconds of steady load that is served."""
    count = int(now_s * per_s)
    return Traffic(
        remote_requests=count,
        remote_tokens=count * prompt,
        finished=count,
        output_tokens=count * output,
        context_tokens=count * (prompt + output // 2),
        ended=count,
        met=count,
    )
