"""Where the time to first token went: eight parts that add up, to the nanosecond."""

from collections.abc import Mapping

from google.protobuf.duration_pb2 import Duration

from baton.v1 import types_pb2

MEASURED_PARTS = (
    "tokenize",
    "admission",
    "route",
    "decode_admit",
    "prefill_queue",
    "prefill_compute",
    "kv_transfer",
)
LAST_PART = "first_step"
"""What is left of the TTFT: measured at the router, up to the first chunk it wrote."""


_SECOND_NS = 1_000_000_000


def ttft_parts_ns(measured_s: Mapping[str, float], ttft_s: float) -> dict[str, int]:
    """Returns all eight parts in nanoseconds; their sum is the TTFT.

    Parts come from several clocks. Where they exceed the TTFT by a little, the later ones are cut.
    """
    left_ns = round(ttft_s * 1e9)
    parts: dict[str, int] = {}
    for name in MEASURED_PARTS:
        part_ns = min(max(round(measured_s.get(name, 0.0) * 1e9), 0), left_ns)
        parts[name] = part_ns
        left_ns -= part_ns
    parts[LAST_PART] = left_ns
    return parts


def tpot_s(first_token_s: float, end_s: float, tokens: int) -> float | None:
    """Returns the mean time per token after the first, or None below two tokens."""
    return (end_s - first_token_s) / (tokens - 1) if tokens > 1 else None


def breakdown(
    parts_ns: Mapping[str, int], tpot: float | None, total_s: float
) -> types_pb2.TimingBreakdown:
    """Returns the message; `total_s` is the whole request."""
    message = types_pb2.TimingBreakdown()
    for name, part_ns in parts_ns.items():
        _set(getattr(message, name), part_ns)
    _set(message.ttft, sum(parts_ns.values()))
    _set(message.total, round(total_s * 1e9))
    if tpot is not None:
        _set(message.tpot, round(tpot * 1e9))
    return message


def _set(duration: Duration, nanoseconds: int) -> None:
    """Sets a duration that is not negative; `FromNanoseconds` takes several times as long."""
    if nanoseconds < _SECOND_NS:
        duration.nanos = nanoseconds
    else:
        duration.seconds, duration.nanos = divmod(nanoseconds, _SECOND_NS)
