"""What became of the prefill workers that were asked for one prompt."""

from collections.abc import Sequence

from baton.errors import BatonError, OverloadedError, UnavailableError

PREFILL_FAILED = "PREFILL_FAILED"


class AttemptFailed(Exception):  # noqa: N818  # an outcome that the caller goes on from
    """A prefill worker did not deliver. `reason` is machine-readable."""

    def __init__(self, worker_id: str, error: BatonError) -> None:
        super().__init__(f"{worker_id}: {error.message}")
        self.worker_id = worker_id
        self.error = error

    @property
    def reason(self) -> str:
        """Why, as errors say it."""
        return self.error.reason

    @property
    def story(self) -> str:
        """What is told of it upwards."""
        return f"{self.worker_id}: {self.reason}"


def nobody_delivered(failed: Sequence[AttemptFailed], reason: str) -> BatonError:
    """Returns the error of a prompt that no prefill worker computed and the engine cannot.

    Workers that all were full make it a matter of load, which passes, and not of a fault: whoever
    asks is told when to come back, and no worker is suspected. `reason` is why none was asked.
    """
    message = "no prefill worker computed the prompt and this engine cannot: " + (
        ", ".join(attempt.story for attempt in failed) or reason
    )
    refusals = [it.error for it in failed if isinstance(it.error, OverloadedError)]
    if not refusals or len(refusals) < len(failed):
        return UnavailableError(message, reason=PREFILL_FAILED)
    waits_s = [error.retry_after_s for error in refusals if error.retry_after_s is not None]
    return OverloadedError(
        message, reason=refusals[0].reason, retry_after_s=min(waits_s, default=None)
    )
