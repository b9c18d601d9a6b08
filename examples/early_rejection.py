"""Early rejection under a rising load: who is let in, by priority, at which predicted TTFT.

python examples/early_rejection.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from baton.requests import Priority
from services.admission.policies.queue_estimate import QueueEstimatePolicy
from services.admission.policy import Accept, MeshLoad, PermitRequest, QosLimits

PREFILL_WORKERS, DECODE_WORKERS = 2, 4
PREFILL_S, DECODE_S = 0.12, 0.02
LIMITS = QosLimits(low_priority_threshold_s=0.5, ttft_slo_s=2.0)


def load_of(waiting: int) -> MeshLoad:
    """Returns the mesh with `waiting` requests before the one that asks."""
    backlog = min(waiting, 16)
    return MeshLoad(
        prefill_workers=PREFILL_WORKERS,
        decode_workers=DECODE_WORKERS,
        prefill_permits=min(waiting, PREFILL_WORKERS),
        decode_permits=2 * backlog,
        waiting_ahead=max(0, waiting - PREFILL_WORKERS),
        prefill_s=PREFILL_S,
        decode_s=DECODE_S,
        backlog_s=PREFILL_S * min(waiting, PREFILL_WORKERS),
        ahead_s=PREFILL_S * max(0, waiting - PREFILL_WORKERS),
        own_s=PREFILL_S,
    )


def main() -> None:
    """Shows the verdict for each priority while the queue grows and drains again."""
    policy = QueueEstimatePolicy(LIMITS)
    print(
        f"targets: low {LIMITS.low_priority_threshold_s:.1f} s, normal {LIMITS.ttft_slo_s:.1f} s, "
        "high always\n"
    )
    print("waiting  predicted TTFT                                 low     normal  high")
    admitted = dict.fromkeys(Priority, 0)
    queue = [*range(0, 64, 4), *range(64, -1, -8)]
    for now_s, waiting in enumerate(queue):
        load = load_of(waiting)
        verdicts = {
            priority: policy.decide(float(now_s), load, PermitRequest("r", priority=priority))
            for priority in Priority
        }
        ttft_s = verdicts[Priority.HIGH].predicted_ttft_s
        words = []
        for priority, verdict in verdicts.items():
            is_in = isinstance(verdict, Accept)
            admitted[priority] += is_in
            words.append(f"{'in' if is_in else 'reject':<7}")
        bar = "#" * min(36, round(8 * ttft_s))
        print(f"{waiting:7d}  {ttft_s:5.2f} s {bar:<37} {' '.join(words)}")
    total = len(queue)
    shares = (f"{priority.name.lower()} {admitted[priority] / total:.0%}" for priority in Priority)
    print(f"\nlet in: {', '.join(shares)}")


if __name__ == "__main__":
    main()
