"""What became of one request."""

import enum
from dataclasses import dataclass

from sim.workload import SimRequest


class Ending(enum.StrEnum):
    """How a request left the mesh."""

    SERVED = "SERVED"
    REJECTED = "REJECTED"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One offered request, whatever became of it. Times in seconds.

    `ttft_s` and `tpot_s` are None where there is none: rejected, or a single token. `cached_tokens`
    of the prompt needed no computing; `vain_tokens` were computed by a prefill worker although the
    decode worker held them. `reason` says why it was rejected, or why its prompt was
    computed where it was. `computed_tokens` of the prompt were computed for it, more than once
    after a preemption.
    """

    request: SimRequest
    ending: Ending
    reason: str
    ended_s: float
    ttft_s: float | None = None
    tpot_s: float | None = None
    cached_tokens: int = 0
    vain_tokens: int = 0
    is_remote: bool = False
    prefill_worker: str = ""
    decode_worker: str = ""
    computed_tokens: int = 0

    def meets(self, ttft_slo_s: float, tpot_slo_s: float) -> bool:
        """Returns whether it was served within both limits; a single token has no TPOT to miss."""
        if self.ttft_s is None:
            return False
        return self.ttft_s <= ttft_slo_s and (self.tpot_s or 0.0) <= tpot_slo_s
