"""What an SGLang output means: how a stream ended, and where the time went. Pure."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from baton.errors import (
    BatonError,
    CancelledByPeerError,
    InvalidRequestError,
    OverloadedError,
    TransferError,
)
from baton.requests import FinishReason

_BAD_REQUEST = 400
_BUSY = (429, 503)
_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


class StageTimes(NamedTuple):
    """How long a prompt waited and was computed, in seconds; zero where it is not told."""

    queue_s: float
    compute_s: float
    handover_s: float = 0.0
    """From computed to handed over, on a prefill leg."""


def finish_reason(finish: Mapping[str, Any]) -> FinishReason:
    """Returns why a stream ended well. Raises what it means when it did not."""
    reason = _REASONS.get(str(finish.get("type")))
    if reason is None:
        raise abort_error(finish)
    return reason


def abort_error(finish: Mapping[str, Any]) -> BatonError:
    """Returns the error that an aborted stream stands for."""
    message = str(finish.get("message") or "the engine aborted the request")
    status = int(finish.get("status_code") or 0)
    if status == _BAD_REQUEST:
        return InvalidRequestError(message, reason="ENGINE_REFUSED")
    if status in _BUSY:
        return OverloadedError(message, reason="ENGINE_BUSY")
    if status:
        return TransferError(message)
    return CancelledByPeerError(message)


def stage_times(meta: Mapping[str, Any], ended_at_s: float) -> StageTimes:
    """Returns the stages of a prompt from an output's times, which are seconds since 1970."""
    received = _time(meta, "request_received_ts")
    entered = _time(meta, "forward_entry_time")
    computed = _time(meta, "prefill_finished_time")
    if not entered:
        return StageTimes(_time(meta, "queue_time"), 0.0)
    queue_s = entered - received if received else _time(meta, "queue_time")
    if not computed:
        return StageTimes(max(0.0, queue_s), max(0.0, ended_at_s - entered))
    return StageTimes(
        max(0.0, queue_s), max(0.0, computed - entered), max(0.0, ended_at_s - computed)
    )


def _time(meta: Mapping[str, Any], name: str) -> float:
    value = meta.get(name)
    return float(value) if isinstance(value, int | float) else 0.0
