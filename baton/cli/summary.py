"""How one request went, in words and as plain values."""

from dataclasses import asdict
from typing import Any

from baton.client import Completion, Timing

PARTS = (
    ("tokenize", "tokenize_s"),
    ("admission", "admission_s"),
    ("route", "route_s"),
    ("reserve", "decode_admit_s"),
    ("queue", "prefill_queue_s"),
    ("prefill", "prefill_compute_s"),
    ("transfer", "kv_transfer_s"),
    ("first step", "first_step_s"),
)


def summary(done: Completion) -> list[str]:
    """Returns where it ran and why, its tokens and bytes, and its times; a phrase each."""
    where = (
        f"remote prefill on {done.prefill_worker_id}" if done.is_remote_prefill else "local prefill"
    )
    place = f"{where} ({done.prefill_reason}), decode on {done.decode_worker_id}"
    if done.migrations:
        place += f" after {done.migrations} migration{'s' if done.migrations > 1 else ''}"
    tokens = (
        f"{done.prompt_tokens} prompt tokens, {done.cached_tokens} of them cached, "
        f"{done.completion_tokens} generated ({done.finish_reason.name.lower()}), "
        f"KV moved {bytes_text(done.kv_bytes)}"
    )
    phrases = [place, tokens, times(done.timing)]
    if done.degradations:
        phrases.append(f"degraded: {', '.join(done.degradations)}")
    if done.trace_id:
        phrases.append(f"trace {done.trace_id}")
    return phrases


def times(timing: Timing) -> str:
    """Returns TTFT with its parts, TPOT and the total; parts below 0.05 ms are left out."""
    parts = [(name, 1000 * getattr(timing, field)) for name, field in PARTS]
    split = " + ".join(f"{name} {ms:.1f}" for name, ms in parts if ms >= 0.05)
    tpot = "" if timing.tpot_s is None else f", TPOT {1000 * timing.tpot_s:.1f} ms"
    total = f", total {1000 * timing.total_s:.0f} ms"
    return f"TTFT {1000 * timing.ttft_s:.1f} ms = {split or '0'}{tpot}{total}"


def bytes_text(count: int) -> str:
    """Returns a number of bytes with a fitting unit."""
    if count >= 2**30:
        return f"{count / 2**30:.2f} GiB"
    if count >= 2**20:
        return f"{count / 2**20:.2f} MiB"
    return f"{count / 2**10:.1f} KiB" if count >= 2**10 else f"{count} B"


def as_values(text: str, output_ids: list[int], done: Completion) -> dict[str, Any]:
    """Returns the whole answer as values for JSON; times in seconds."""
    return {
        "text": text,
        "output_ids": output_ids,
        **asdict(done),
        "finish_reason": done.finish_reason.name.lower(),
    }
