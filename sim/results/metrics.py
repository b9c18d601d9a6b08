"""The figures of one run."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sim.mesh import SimMesh
from sim.results.ideal import Profile
from sim.results.recorder import ClassRecord, Recorder

Figure = float | None
"""A figure, or None where there is nothing to measure."""

_ROUNDING = 1e-9
_QUANTILES = (("p50", 0.50), ("p90", 0.90), ("p99", 0.99))


@dataclass(frozen=True, slots=True)
class RunMetrics:
    """One run: figures by name (units in the name, shares from 0 to 1), and counts of reasons."""

    seed: int
    figures: Mapping[str, Figure]
    rejections: Mapping[str, int]
    placements: Mapping[str, int]


def measure(mesh: SimMesh, recorder: Recorder, workload: Profile, seed: int) -> RunMetrics:
    """Returns the figures of a run that is over."""
    figures = dict(_all(mesh, recorder, workload))
    return RunMetrics(seed, figures, dict(recorder.rejections), dict(recorder.reasons))


def quantile(values: Sequence[float], share: float) -> Figure:
    """Returns the nearest-rank quantile of sorted values; None without any."""
    if not values:
        return None
    return values[min(len(values) - 1, max(0, math.ceil(share * len(values) - _ROUNDING) - 1))]


def _all(mesh: SimMesh, recorder: Recorder, workload: Profile) -> Iterator[tuple[str, Figure]]:
    everyone, span_s = recorder.everyone, recorder.span_s
    gpus = mesh.gpu_seconds / mesh.loop.now_s if mesh.loop.now_s else 0
    per_s = _ratio(everyone.met, span_s)
    yield "offered", everyone.offered
    yield "goodput", _ratio(everyone.met, everyone.offered)
    yield "goodput_per_s", per_s
    yield "goodput_per_gpu_s", None if per_s is None else _ratio(per_s, gpus)
    yield "mean_gpus", gpus
    rejected = sum(recorder.rejections.values())
    yield "rejected", _ratio(rejected, everyone.offered)
    yield from _latencies("", everyone)
    for name, record in sorted(recorder.classes.items()):
        yield f"{name}_offered", record.offered
        yield f"{name}_goodput", _ratio(record.met, record.offered)
        yield from _latencies(f"{name}_", record)
    hit_rate = _ratio(recorder.cached_tokens, recorder.prompt_tokens)
    yield "hit_rate", hit_rate
    yield "ideal_hit_rate", workload.ideal_hit_rate
    yield "ideal_hit_rate_at_size", workload.ideal_at_size
    yield "hit_share_of_ideal", _ratio(hit_rate, workload.ideal_at_size)
    yield "offload_share", _ratio(recorder.long_remote, recorder.long_served)
    yield from _work(mesh, recorder)
    agreement = mesh.oracle.agreement
    yield "oracle_agreement", agreement.share
    yield "ttft_agreement", _ratio(agreement.agreed_by_ttft, agreement.decisions)
    yield "ttft_missed", _ratio(recorder.ttft_missed, everyone.offered)
    yield "tpot_missed", _ratio(recorder.tpot_missed, everyone.offered)
    yield "simulated_s", mesh.loop.now_s
    yield "events", mesh.loop.processed


def _latencies(prefix: str, record: ClassRecord) -> Iterator[tuple[str, Figure]]:
    for what, values in (("ttft", sorted(record.ttft_s)), ("tpot", sorted(record.tpot_s))):
        for name, share in _QUANTILES:
            yield f"{prefix}{what}_{name}_s", quantile(values, share)


def _work(mesh: SimMesh, recorder: Recorder) -> Iterator[tuple[str, Figure]]:
    pools = (("prefill", mesh.prefill), ("decode", mesh.decode))
    computed = preemptions = 0
    for name, sights in pools:
        workers = [sight.worker for sight in sights]
        computed += sum(worker.prefill_tokens for worker in workers)
        preemptions += sum(worker.preemptions for worker in workers)
        worker_s = sum(sight.present_s(mesh.loop.now_s) for sight in sights)
        yield f"{name}_utilisation", _ratio(sum(worker.busy_s for worker in workers), worker_s)
        yield f"{name}_imbalance", _imbalance([worker.busy_s for worker in workers])
    useful = recorder.prompt_tokens - recorder.cached_tokens - recorder.vain_tokens
    yield "wasted_prefill", _ratio(computed - useful, computed)
    yield "preemptions", preemptions
    steps = sum(sight.worker.decode_steps for sight in mesh.decode)
    yield "mean_batch", _ratio(sum(sight.worker.decode_tokens for sight in mesh.decode), steps)


def _imbalance(loads: Sequence[float]) -> Figure:
    """Returns the busiest worker's share of work over the mean; 1 is balance."""
    return _ratio(max(loads) * len(loads), sum(loads)) if loads else None


def _ratio(part: Figure, whole: Figure) -> Figure:
    return None if part is None or not whole else part / whole
