"""Costs from Splitwise's measurements: Llama-2 70B and BLOOM 176B on A100 and H100 machines.

The table ends at prompts of 8,192 tokens, computed in one piece, and at 64 sequences that hold
some 40,000 tokens together. Free fits bend with what lies beyond arithmetic there, and charge many
times what hardware takes for a prompt of 100,000 tokens in chunks, or for 200,000 resident ones.
So the cost per token pair is bounded by attention's arithmetic at half the GPUs' peak, and the
cost per resident token by reading its KV at half their bandwidth (DistServe's profiles attain
0.64). That costs some accuracy inside the table, which the error shows.
"""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

from sim.costs.fit import Coefficients, Sample, fit, mean_error
from sim.costs.hardware import Hardware
from sim.costs.model import StepCosts

_KV_BYTES_PER_TOKEN = {
    "llama2-70b": 80 * 2 * 8 * 128 * 2,  # layers, keys and values, heads, width, bytes
    "bloom-176b": 70 * 2 * 112 * 128 * 2,
}
_WEIGHT_BYTES = {"llama2-70b": 138e9, "bloom-176b": 352e9}
_FLOP_PER_PAIR = {"llama2-70b": 4 * 8192 * 80, "bloom-176b": 4 * 14336 * 70}
_PEAK_FLOPS = {"a100-80gb": 312e12, "h100-80gb": 989e12, "h100-80gb-pcap": 989e12}
_PEAK_BYTES_PER_S = {"a100-80gb": 2.04e12, "h100-80gb": 3.35e12, "h100-80gb-pcap": 3.35e12}
_ATTAINED = 0.5
_GPU_BYTES = 80e9
_USABLE = 0.9


def read(path: Path, model: str, machine: str, gpus: int) -> Hardware:
    """Fits prefill to prompt_time over prompt_size at batch 1, decode to token_time over batch.

    Raises LookupError when the table has no such rows.
    """
    with path.open(encoding="utf-8", newline="") as lines:
        rows = [
            row
            for row in csv.DictReader(lines)
            if (row["model"], row["hardware"], row["tensor_parallel"])
            == (model, machine, str(gpus))
        ]
    if not rows:
        raise LookupError(f"{path} has no rows for {model} on {gpus} x {machine}")
    pair_s = _FLOP_PER_PAIR[model] / (gpus * _PEAK_FLOPS[machine] * _ATTAINED)
    resident_s = _KV_BYTES_PER_TOKEN[model] / (gpus * _PEAK_BYTES_PER_S[machine] * _ATTAINED)
    prefill, prefill_error = _fit_bounded(list(_prefill_samples(rows)), pair_s)
    decode, decode_error = _fit_bounded(list(_decode_samples(rows)), resident_s)
    room = gpus * _GPU_BYTES * _USABLE - _WEIGHT_BYTES[model]
    return Hardware(
        name=f"splitwise:{model}:{machine}:{gpus}",
        source=f"measured by Splitwise (ISCA'24), {len(rows)} rows of {path.name}",
        costs=StepCosts(prefill, decode),
        kv_tokens=int(room / _KV_BYTES_PER_TOKEN[model]),
        kv_bytes_per_token=_KV_BYTES_PER_TOKEN[model],
        gpus=gpus,
        prefill_error=prefill_error,
        decode_error=decode_error,
        note="measured up to prompts of 8,192 tokens and batches of 64; beyond it is extrapolated",
    )


def _fit_bounded(samples: list[Sample], most_s: float) -> tuple[Coefficients, float]:
    """Fits with at most `most_s` per unit of the third feature."""
    free, error = fit(samples)
    if free[2] <= most_s:
        return free, error
    rest = [
        ((first, second, 0.0), seconds - most_s * third)
        for (first, second, third), seconds in samples
    ]
    base_s, each_s, _ = fit(rest)[0]
    bounded = (base_s, each_s, most_s)
    return bounded, mean_error(samples, bounded)


def _prefill_samples(rows: Iterable[Mapping[str, str]]) -> Iterable[Sample]:
    for row in rows:
        tokens = float(row["prompt_size"])
        if row["batch_size"] == "1":
            yield (1.0, tokens, tokens * tokens / 2), float(row["prompt_time"]) / 1e3


def _decode_samples(rows: Iterable[Mapping[str, str]]) -> Iterable[Sample]:
    for row in rows:
        batch = float(row["batch_size"])
        # token_time is the mean over a generation, during which the context grew to its end.
        resident = batch * (float(row["prompt_size"]) + float(row["token_size"]) / 2)
        yield (1.0, batch, resident), float(row["token_time"]) / 1e3
