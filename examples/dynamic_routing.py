"""Local or remote prefill? The chapter's rule and its predictive form on the same prompts.

python examples/dynamic_routing.py
"""

import random
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from baton.latency import TRUSTED_SAMPLES, CostModel
from services.decode.policy import (
    LocalOutlook,
    Outlook,
    PredictiveSplitPolicy,
    RemoteOutlook,
    SplitDecision,
    ThresholdSplitPolicy,
)

REQUESTS = 2_000
KV_BYTES_PER_TOKEN = 327_680
# 70B on 8 H100: seconds per prefill (fixed, per token, per pair of tokens) and per decode step.
COSTS = CostModel(
    prefill=(2.7e-2, 6.1e-5, 6.6e-10),
    step=(3.0e-2, 2.9e-4, 2.4e-8),
    transfer=(2e-3, 1 / 40e9),
    prefill_samples=TRUSTED_SAMPLES,
    step_samples=TRUSTED_SAMPLES,
    transfer_samples=TRUSTED_SAMPLES,
)
THRESHOLD = ThresholdSplitPolicy(prompt_length_threshold=256, prefill_queue_max=16)
PREDICTIVE = PredictiveSplitPolicy(THRESHOLD, tpot_price=10.0, chunk_tokens=512)


def outlook(queues: list[int], streams: int, missing: int) -> Outlook:
    """Returns what a decode worker with `streams` running streams knows."""
    local = LocalOutlook(
        COSTS, sequences=streams, resident_tokens=900 * streams,
        kv_bytes_per_token=KV_BYTES_PER_TOKEN,
    )  # fmt: skip
    prefill_s = COSTS.prefill_s(missing, 0)
    remotes = [
        RemoteOutlook(f"prefill-{at}", COSTS.queue_s(queue, 800 * queue), prefill_s)
        for at, queue in enumerate(queues)
    ]
    return Outlook(local, remotes)


def show(kind: str, decisions: list[SplitDecision]) -> None:
    """Prints how often prompts went remote, and why."""
    reasons = Counter(decision.reason.value for decision in decisions)
    long = [decision for decision in decisions if decision.uncached_tokens > 256]
    offloaded = sum(decision.remote for decision in long) / len(long)
    print(f"{kind:<11} {offloaded:4.0%} of the {len(long)} long prompts went remote")
    for reason, number in reasons.most_common():
        bar = "#" * round(40 * number / len(decisions))
        print(f"  {reason:<20} {number:5d} {bar}")


def main() -> None:
    """Decides for every prompt both ways and compares."""
    rng = random.Random(17)
    threshold: list[SplitDecision] = []
    predictive: list[SplitDecision] = []
    for _ in range(REQUESTS):
        prompt = min(8_000, int(rng.lognormvariate(6.2, 1.1)) + 8)
        cached = int(prompt * rng.choice((0, 0, 0.5, 0.9)))
        queues = sorted(max(0, int(rng.gauss(4, 6))) for _ in range(3))
        streams = rng.randrange(0, 48)
        view = outlook(queues, streams, prompt - cached)
        threshold.append(THRESHOLD.decide(prompt, cached, queues))
        predictive.append(PREDICTIVE.decide(prompt, cached, queues, view))
    show("threshold", threshold)
    show("predictive", predictive)
    gains = [
        it.prediction.local_ttft_s + it.prediction.interference_s - it.prediction.remote_ttft_s
        for it in predictive
        if it.prediction is not None and it.remote
    ]
    print(f"going remote was worth {1000 * sum(gains) / len(gains):.0f} ms on average")


if __name__ == "__main__":
    main()
