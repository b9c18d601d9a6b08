"""Costs from DistServe's profiles: OPT 13B and 66B on A100 80 GB, as its simulator uses them."""

import json
from pathlib import Path
from typing import Any

from sim.costs.fit import Coefficients
from sim.costs.hardware import Hardware
from sim.costs.model import StepCosts

_KV_BYTES_PER_TOKEN = {"opt-13b": 40 * 2 * 5120 * 2, "opt-66b": 64 * 2 * 9216 * 2}
_WEIGHT_BYTES = {"opt-13b": 26e9, "opt-66b": 132e9}
_GPU_BYTES = 80e9
_USABLE = 0.9


def read(path: Path, model: str, gpus: int) -> Hardware:
    """Converts a published profile; its coefficients are used as they are.

    A prefill of L tokens is a + b L + c L^2 there, so that a token pair here costs 2 c. Raises
    LookupError when the file has no such profile.
    """
    profiles = json.loads(path.read_text(encoding="utf-8"))
    profile = profiles.get(f"facebook/{model}", {}).get(str(gpus))
    if profile is None:
        raise LookupError(f"{path} has no profile of {model} on {gpus} GPUs")
    base, per_token, per_square = profile["prefill"]
    room = gpus * _GPU_BYTES * _USABLE - _WEIGHT_BYTES[model]
    engine = path.name.split(".")[-2]
    return Hardware(
        name=f"distserve:{model}:{engine}:{gpus}",
        source=f"profiled by DistServe (OSDI'24), {path.name}",
        costs=StepCosts(
            prefill=_seconds(base, per_token, 2 * per_square),
            decode=_decode(profile["decoding_smallbs"]),
            large_decode=_decode(profile["decoding_largebs"]),
            large_above=int(profile["decoding_large_small_bs_threshold"]),
        ),
        kv_tokens=int(room / _KV_BYTES_PER_TOKEN[model]),
        kv_bytes_per_token=_KV_BYTES_PER_TOKEN[model],
        gpus=gpus,
        note="a negative coefficient counts as 0" if per_square < 0 else "",
    )


def _decode(values: list[Any]) -> Coefficients:
    base, per_token, per_sequence = values
    return _seconds(base, per_sequence, per_token)


def _seconds(*values_ms: float) -> Coefficients:
    first, second, third = (max(0.0, float(value)) / 1e3 for value in values_ms)
    return first, second, third
