"""The chapter's early rejection: queue lengths times average times against the TTFT target."""

from services.admission.policy import (
    TTFT_UNATTAINABLE,
    Accept,
    MeshLoad,
    PermitRequest,
    QosLimits,
    Reject,
    Verdict,
)


class QueueEstimatePolicy:
    """The chapter's rule.

    A queue is what the pool cannot run at once, the new request included: prompts beyond one per
    prefill worker (decode workers stand in where there are none), generations beyond the slots of
    all decode workers. Each is shared by the pool's workers. A mesh with a free worker therefore
    predicts 0 and rejects nobody, whatever its averages say.
    """

    name = "queue_estimate"

    def __init__(self, limits: QosLimits) -> None:
        self._limits = limits

    def decide(self, now_s: float, load: MeshLoad, request: PermitRequest) -> Verdict:
        """See AdmissionPolicy; the estimate does not depend on the clock."""
        ttft_s = predict_ttft_s(load)
        limit_s = self._limits.wait_limit_s(request)
        if ttft_s > limit_s:
            return Reject(TTFT_UNATTAINABLE, ttft_s, ttft_s - limit_s)
        return Accept(ttft_s, ttft_s / self._limits.ttft_slo_s)

    def may_start(self, now_s: float, load: MeshLoad, request: PermitRequest) -> bool:
        """See AdmissionPolicy: a slot is all it needs."""
        return load.has_slot

    def is_hopeless(self, waited_s: float, work_s: float, request: PermitRequest) -> bool:
        """See AdmissionPolicy: the chapter decides once, at the door."""
        return False


def estimate_ttft_s(
    prefill_queue: float, avg_prefill_s: float, decode_queue: float, avg_decode_s: float
) -> float:
    """Returns the chapter's estimate: what is queued before a request, at its average time."""
    return prefill_queue * avg_prefill_s + decode_queue * avg_decode_s


def predict_ttft_s(load: MeshLoad) -> float:
    """Returns the queueing part of the TTFT that a request arriving now would see."""
    prefill_workers = load.computing_workers
    prefills = load.prefill_permits + load.waiting_ahead + 1 - prefill_workers
    generations = load.prefill_permits + load.decode_permits + load.waiting_ahead + 1
    return estimate_ttft_s(
        max(prefills, 0),
        load.prefill_s / max(prefill_workers, 1),
        max(generations - load.capacity, 0),
        load.decode_s / max(load.capacity, 1),
    )
