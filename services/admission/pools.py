"""The pools as admission knows them: how many workers accept work and what that costs them."""

import statistics
from collections.abc import Sequence

from baton.latency import CostModel
from baton.state.fleet import FleetView
from baton.state.members import WorkerView
from baton.state.records import WorkerRole
from services.admission.ledger import Pools
from services.admission.policy import DecodePool


def pools_of(fleet: FleetView) -> Pools:
    """Returns the workers that accept work; one that drains counts for nothing."""
    prefill = _accepting(fleet.workers(WorkerRole.PREFILL))
    decode = _accepting(fleet.workers(WorkerRole.DECODE))
    kv_tokens = [view.record.kv_blocks * view.record.block_size for view in decode]
    return Pools(
        prefill_workers=len(prefill),
        decode=DecodePool(
            workers=len(decode),
            costs=mean_costs(decode),
            kv_tokens=round(statistics.fmean(kv_tokens)) if kv_tokens else 0,
        ),
        prefill_costs=mean_costs(prefill or decode),
    )


def mean_costs(workers: Sequence[WorkerView]) -> CostModel:
    """Returns the mean of what is measured; the declared costs where nothing is."""
    found = [view.stats.costs for view in workers if view.stats and view.stats.costs]
    prefill = [costs for costs in found if costs.knows_prefill]
    step = [costs for costs in found if costs.knows_step]
    default = CostModel()
    return CostModel(
        prefill=_mean([costs.prefill for costs in prefill]) or default.prefill,
        step=_mean([costs.step for costs in step]) or default.step,
        prefill_samples=min((costs.prefill_samples for costs in prefill), default=0),
        step_samples=min((costs.step_samples for costs in step), default=0),
    )


def _accepting(workers: Sequence[WorkerView]) -> list[WorkerView]:
    return [view for view in workers if view.stats is None or not view.stats.draining]


def _mean(
    coefficients: Sequence[tuple[float, float, float]],
) -> tuple[float, float, float] | None:
    if not coefficients:
        return None
    first, second, third = map(statistics.fmean, zip(*coefficients, strict=True))
    return first, second, third
