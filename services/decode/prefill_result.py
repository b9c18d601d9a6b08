"""What a prefill worker answers, read off its link."""

from baton.engine.base import Prefilled
from baton.errors import TransferError
from baton.v1 import prefill_link_pb2
from baton.worker import messages
from services.decode.reservations import PrefillCall


async def result(call: PrefillCall) -> prefill_link_pb2.PrefillDone:
    """Returns the result of a prefill. Raises what it failed with."""
    async for event in call:
        return event.done
    raise TransferError("the prefill ended without a result", reason="NO_RESULT")


def to_prefilled(done: prefill_link_pb2.PrefillDone) -> Prefilled:
    """Returns the result as the engines' own value."""
    return Prefilled(
        first_token=done.first_token,
        logprob=done.logprob if done.HasField("logprob") else None,
        receipt=messages.receipt(done.receipt),
        queue_s=done.queue_s,
        compute_s=done.compute_s,
        cached_tokens=done.cached_tokens,
    )
