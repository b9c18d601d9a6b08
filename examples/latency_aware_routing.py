"""Multi-factor routing: how five policies place the same requests on the same uneven fleet.

python examples/latency_aware_routing.py
"""

import random
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from baton.latency import TRUSTED_SAMPLES, CostModel
from baton.sections import SplitPolicy
from services.router.choice import make_policy
from services.router.policies.latency import LatencyPolicy, LatencySettings
from services.router.policy import Decision, DecodeView, PrefillView, RouteRequest

REQUESTS, KV_BYTES_PER_TOKEN = 600, 131_072
POLICIES = ("latency", "weighted", "least_loaded", "power_of_two", "round_robin")


def costs(speed: float) -> CostModel:
    """Returns the costs of a worker that is `speed` times as fast as the slowest."""
    return CostModel(
        prefill=(5e-3, 2e-4 / speed, 1e-8 / speed), step=(5e-3 / speed, 5e-4 / speed, 1e-7),
        prefill_samples=TRUSTED_SAMPLES, step_samples=TRUSTED_SAMPLES,
        transfer_samples=TRUSTED_SAMPLES,
    )  # fmt: skip


def fleet(rng: random.Random, prompt: int) -> tuple[list[PrefillView], list[DecodeView]]:
    """Returns four prefill and six decode workers as a router sees them at one moment."""
    prefill = []
    for at in range(4):
        queue = max(0, int(rng.expovariate(1 / 3)))
        cached = 16 * int(rng.choice((0, 0, 0.3, 0.8)) * prompt / 16)
        prefill.append(
            PrefillView(f"prefill-{at}", f"p{at}", f"p{at}:1", queue, cached,
                        queued_tokens=700 * queue, costs=costs(1 + at % 2))
        )  # fmt: skip
    decode = []
    for at in range(6):
        running = rng.randrange(0, 40)
        decode.append(
            DecodeView(f"decode-{at}", f"d{at}", f"d{at}:1", 0, running,
                       resident_tokens=800 * running, kv_free_tokens=200_000,
                       costs=costs(1 + at % 2))
        )  # fmt: skip
    return prefill, decode


def outcome(judge: LatencyPolicy, request: RouteRequest, decision: Decision) -> tuple[float, float]:
    """Returns the TTFT and TPOT in ms of what was decided, by the cost model that all share."""
    best = decision.prefill_candidates[0] if decision.prefill_candidates else None
    if decision.chosen is not None:
        best = decision.chosen.prefill
    terms = judge.evaluate(request, best, decision.decode).terms
    return 1000 * terms.ttft_s, 1000 * terms.tpot_s


def main() -> None:
    """Places every request by every policy and prints what it would have cost."""
    judge = LatencyPolicy(LatencySettings(), random.Random(0))
    print(f"{'policy':<14}{'TTFT p50':>10}{'p95':>9}{'TPOT p50':>11}{'p95':>9}   (ms)")
    for name in POLICIES:
        rng = random.Random(5)
        policy = make_policy(SplitPolicy(policy=name), 0.75, rng=random.Random(1))
        times = []
        for _ in range(REQUESTS):
            prompt = min(6_000, int(rng.lognormvariate(6.5, 1.0)) + 16)
            request = RouteRequest(prompt, KV_BYTES_PER_TOKEN)
            prefill, decode = fleet(rng, prompt)
            decision = policy.choose(request, prefill, decode)
            times.append(outcome(judge, request, decision))
        ttft, tpot = (sorted(column) for column in zip(*times, strict=True))
        p95 = int(0.95 * len(ttft))
        print(
            f"{name:<14}{statistics.median(ttft):>10.1f}{ttft[p95]:>9.1f}"
            f"{statistics.median(tpot):>11.2f}{tpot[p95]:>9.2f}"
        )


if __name__ == "__main__":
    main()
