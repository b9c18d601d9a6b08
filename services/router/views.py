"""Views of single workers for the policies, made anew only when something about them changed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Generic, NamedTuple

from baton.latency import CostModel
from baton.state.members import WorkerView
from baton.state.records import WorkerStats
from baton.state.shared_credits import NOTHING_UNSEEN, Unseen
from services.router.credits import Credits, Suspects
from services.router.policy import DECLARED_COSTS, DecodeView, PrefillView, View

REMAKE_AFTER_S = 0.25
"""A view that is otherwise the same gets its new age after half to all of this time, each worker
at another moment: no request should pay for all of them."""

_MOMENTS = 64

BORROW_EVERY_S = 1.0

_NO_STATS = WorkerStats(taken_at_s=0.0)


class PeerCosts:
    """Costs for workers that measured too little: those of a like worker that measured enough.

    Without this a new worker would be judged by declared defaults against measured ones, and so
    get all of the work or none. It stays untrusted: what is borrowed only compares workers.
    """

    def __init__(self) -> None:
        self._lent = DECLARED_COSTS
        self._at_s = float("-inf")
        # By identity, with what was asked about, which so keeps its identity to itself.
        self._filled_in: dict[int, tuple[CostModel, CostModel]] = {}

    def refresh(self, workers: Sequence[WorkerView], now_s: float) -> None:
        """Looks for measured workers again, now and then."""
        if now_s < self._at_s + BORROW_EVERY_S:
            return
        self._at_s = now_s
        known = [it.stats.costs for it in workers if it.stats is not None and it.stats.costs]
        prefill = _middle([it for it in known if it.knows_prefill], lambda it: it.prefill_s(512, 0))
        step = _middle([it for it in known if it.knows_step], lambda it: it.step_s(8, 4096))
        self._lent = CostModel(prefill=prefill.prefill, step=step.step)
        self._filled_in.clear()

    def of(self, own: CostModel | None) -> CostModel:
        """Returns a worker's own costs, with what it does not know yet borrowed."""
        if own is None:
            return self._lent
        if own.knows_prefill and own.knows_step:
            return own
        known = self._filled_in.get(id(own))
        if known is None:
            known = self._filled_in[id(own)] = own, self._fill_in(own)
        return known[1]

    def _fill_in(self, own: CostModel) -> CostModel:
        return replace(
            own,
            prefill=own.prefill if own.knows_prefill else self._lent.prefill,
            step=own.step if own.knows_step else self._lent.step,
        )


class _Made(NamedTuple, Generic[View]):
    """A view and what it was made from."""

    source: WorkerView
    until_s: float
    cached_tokens: int
    unseen: Unseen
    is_suspect: bool
    view: View


class Sighting(NamedTuple):
    """All that a view of one worker is made from."""

    source: WorkerView
    stats: WorkerStats
    costs: CostModel
    unseen: Unseen
    cached_tokens: int
    age_s: float
    is_suspect: bool


class ViewMaker(Generic[View]):
    """Makes the views of one role's workers for one router."""

    def __init__(
        self,
        credits: Credits,
        suspects: Suspects,
        make: Callable[[Sighting], View],
    ) -> None:
        self._credits = credits
        self._suspects = suspects
        self._make: Callable[[Sighting], View] = make
        self._costs = PeerCosts()
        self._made: dict[str, _Made[View]] = {}

    def views(
        self, workers: Sequence[WorkerView], cached: Mapping[str, int], now_s: float
    ) -> list[View]:
        """Returns the workers' views, in the order given."""
        self._costs.refresh(workers, now_s)
        if len(self._made) > 2 * len(workers) + 16:
            self._made.clear()
        suspected, credits = self._suspects.now(), self._credits
        holders = credits.holders
        known, views = self._made.get, []
        # Once per worker and request: what is not needed here is done where a view is made.
        for worker in workers:
            name = worker.record.incarnation
            unseen = credits.unseen(name, worker.stats_at_s) if name in holders else NOTHING_UNSEEN
            cached_tokens, is_suspect = cached.get(name, 0), name in suspected
            made = known(name)
            if made is not None:
                source, until_s, had, had_unseen, was_suspect, view = made
                if (
                    source is worker
                    and until_s > now_s
                    and had == cached_tokens
                    and had_unseen == unseen
                    and was_suspect is is_suspect
                ):
                    views.append(view)
                    continue
            views.append(self._remake(worker, unseen, cached_tokens, now_s, is_suspect))
        return views

    def _remake(
        self, worker: WorkerView, unseen: Unseen, cached_tokens: int, now_s: float, is_suspect: bool
    ) -> View:
        stats = worker.stats or _NO_STATS
        costs, age_s = self._costs.of(stats.costs), worker.age_s(now_s)
        seen = Sighting(worker, stats, costs, unseen, cached_tokens, age_s, is_suspect)
        view = self._make(seen)
        incarnation = worker.record.incarnation
        until_s = now_s + REMAKE_AFTER_S * (1 + hash(incarnation) % _MOMENTS / _MOMENTS) / 2
        made = _Made(worker, until_s, cached_tokens, unseen, is_suspect, view)
        self._made[incarnation] = made
        return view


def prefill_view(seen: Sighting) -> PrefillView:
    """Returns a prefill worker as policies see it."""
    record, stats = seen.source.record, seen.stats
    return PrefillView(
        worker_id=record.worker_id,
        incarnation=record.incarnation,
        address=record.address,
        queue_length=stats.queued_requests + stats.prefilling_requests + seen.unseen.requests,
        cached_tokens=seen.cached_tokens,
        stats_age_s=seen.age_s,
        is_draining=stats.draining,
        is_suspect=seen.is_suspect,
        queued_tokens=stats.queued_tokens + seen.unseen.tokens,
        queued_pairs=_queued_pairs(stats, seen.unseen),
        costs=seen.costs,
    )


def decode_view(seen: Sighting) -> DecodeView:
    """Returns a decode worker as policies see it."""
    record, stats = seen.source.record, seen.stats
    has_figures = stats.kv_blocks_total > 0
    room = stats.kv_blocks_free + stats.kv_blocks_cached
    return DecodeView(
        worker_id=record.worker_id,
        incarnation=record.incarnation,
        address=record.address,
        queue_length=stats.queued_requests + stats.prefilling_requests,
        # A lease becomes a running generation as soon as its prompt's KV is here.
        decode_load=stats.decoding_requests + stats.kv_leases + seen.unseen.requests,
        cached_tokens=seen.cached_tokens,
        stats_age_s=seen.age_s,
        is_draining=stats.draining,
        is_suspect=seen.is_suspect,
        queued_tokens=stats.queued_tokens + seen.unseen.tokens,
        queued_pairs=_queued_pairs(stats, seen.unseen),
        resident_tokens=stats.kv_blocks_owned * record.block_size,
        kv_free_tokens=room * record.block_size if has_figures else None,
        prefills_locally=record.prefills_locally,
        takes_prefilled=record.takes_prefilled,
        costs=seen.costs,
    )


def _queued_pairs(stats: WorkerStats, unseen: Unseen) -> float | None:
    """Returns the pairs of what is queued; dispatches on their way count as equally long."""
    if stats.queued_pairs is None:
        return None
    return stats.queued_pairs + unseen.tokens**2 / (2 * max(1, unseen.requests))


def _middle(costs: list[CostModel], size: Callable[[CostModel], float]) -> CostModel:
    """Returns the median by `size`; the declared costs when there are none."""
    return sorted(costs, key=size)[len(costs) // 2] if costs else DECLARED_COSTS
