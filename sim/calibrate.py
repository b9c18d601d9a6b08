"""A hardware preset from what the workers of a running fleet measured of themselves."""

from collections.abc import Sequence
from statistics import median

from baton.latency import CostModel
from baton.state.background import running
from baton.state.connect import connect, ping_or_fail
from baton.state.fleet import FleetView
from baton.state.members import WorkerView
from baton.state.records import WorkerRole
from sim.costs.hardware import Hardware
from sim.costs.model import StepCosts


class NotMeasuredError(Exception):
    """The fleet has not computed enough to know its costs."""


async def calibrate(redis_url: str, name: str) -> tuple[Hardware, tuple[float, float]]:
    """Reads the fleet's fitted costs; returns the preset and the transfers' (s, s/byte).

    Raises NotMeasuredError when no worker has measured prompts or no one decode steps.
    """
    return preset(name, *await _workers(redis_url))


async def kv_of(redis_url: str) -> tuple[int, int]:
    """Returns the tokens of a worker's KV pool and the bytes of one token."""
    _, decode = await _workers(redis_url)
    record = decode[0].record
    return record.kv_blocks * record.block_size, record.kv_bytes_per_token


async def _workers(redis_url: str) -> tuple[list[WorkerView], list[WorkerView]]:
    """Returns the prefill and the decode workers that are there."""
    redis = connect(redis_url)
    try:
        await ping_or_fail(redis, redis_url)
        fleet = FleetView(redis)
        async with running(fleet.run()):
            await fleet.wait_synced()
            prefill = list(fleet.workers(WorkerRole.PREFILL))
            decode = list(fleet.workers(WorkerRole.DECODE))
    finally:
        await redis.aclose()
    return prefill, decode


def preset(
    name: str, prefill: Sequence[WorkerView], decode: Sequence[WorkerView]
) -> tuple[Hardware, tuple[float, float]]:
    """Returns the median worker of each kind; prompts may have been computed on either."""
    prompts = [it for it in _costs(prefill) if it.knows_prefill] or [
        it for it in _costs(decode) if it.knows_prefill
    ]
    steps = [it for it in _costs(decode) if it.knows_step]
    if not prompts or not steps:
        what = "prompts" if not prompts else "decode steps"
        raise NotMeasuredError(f"no worker has measured enough {what} yet: send some requests")
    prompt = sorted(prompts, key=lambda it: it.prefill_s(512, 0))[len(prompts) // 2]
    step = sorted(steps, key=lambda it: it.step_s(8, 4096))[len(steps) // 2]
    records = [view.record for view in (*prefill, *decode)]
    samples = sum(it.prefill_samples + it.step_samples for it in (*prompts, *steps))
    made = Hardware(
        name=name,
        source=f"fitted by {len(records)} running workers of {records[0].model}, {samples} samples",
        costs=StepCosts(prompt.prefill, step.step),
        kv_tokens=round(median(record.kv_blocks * record.block_size for record in records)),
        kv_bytes_per_token=records[0].kv_bytes_per_token,
        prefill_error=prompt.prefill_error,
        decode_error=step.step_error,
    )
    receiving = [it for it in steps if it.transfer_samples] or steps
    return made, receiving[0].transfer


def _costs(views: Sequence[WorkerView]) -> list[CostModel]:
    return [it.stats.costs for it in views if it.stats is not None and it.stats.costs is not None]
