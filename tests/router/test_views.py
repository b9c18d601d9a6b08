"""Views of workers: what they are made of, when they are made anew, and whose costs they use."""

import pytest

from baton.latency import TRUSTED_SAMPLES, CostModel
from baton.state.members import WorkerView
from baton.state.records import WorkerStats
from services.router.credits import InFlightCredits, Suspects
from services.router.policy import DecodeView, PrefillView
from services.router.views import REMAKE_AFTER_S, ViewMaker, decode_view, prefill_view
from tests.support.fleet import worker_record

FAST = CostModel(
    prefill=(1e-3, 1e-5, 0.0),
    step=(1e-3, 1e-4, 0.0),
    prefill_samples=TRUSTED_SAMPLES,
    step_samples=TRUSTED_SAMPLES,
)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Sight:
    def __init__(self) -> None:
        self.clock = Clock()
        self.credits = InFlightCredits(self.clock)
        self.suspects = Suspects(3.0, self.clock)
        self.decodes: ViewMaker[DecodeView] = ViewMaker(self.credits, self.suspects, decode_view)
        self.prefills: ViewMaker[PrefillView] = ViewMaker(self.credits, self.suspects, prefill_view)

    def decode(self, worker: WorkerView, **cached: int) -> DecodeView:
        return self.decodes.views([worker], cached, self.clock.now_s)[0]


def worker(name: str = "w", at_s: float = 99.0, **stats: object) -> WorkerView:
    figures = WorkerStats(1.0, **stats)  # type: ignore[arg-type]
    return WorkerView(worker_record(name, name), figures, at_s)


def test_decode_view_joins_figures_credits_and_cache() -> None:
    sight = Sight()
    sight.credits.take("w", tokens=70)
    view = sight.decode(
        worker(
            queued_requests=2,
            prefilling_requests=1,
            queued_tokens=30,
            decoding_requests=4,
            kv_leases=1,
            kv_blocks_total=256,
            kv_blocks_free=100,
            kv_blocks_cached=50,
            kv_blocks_owned=106,
        ),
        w=32,
    )
    assert (view.queue_length, view.queued_tokens) == (3, 100)
    assert view.decode_load == 6
    assert (view.resident_tokens, view.kv_free_tokens) == (106 * 16, 150 * 16)
    assert (view.cached_tokens, view.stats_age_s) == (32, 1.0)
    assert sight.decode(worker("other")).kv_free_tokens is None


def test_prefill_view_counts_own_dispatches() -> None:
    sight = Sight()
    sight.credits.take("w", tokens=70)
    (view,) = sight.prefills.views([worker(queued_tokens=5, queued_requests=1)], {}, 100.0)
    assert (view.queue_length, view.queued_tokens) == (2, 75)


def test_view_is_kept_while_nothing_changed() -> None:
    sight, source = Sight(), worker()
    first = sight.decode(source, w=16)
    assert sight.decode(source, w=16) is first
    assert sight.decode(source, w=32).cached_tokens == 32


def test_view_is_made_anew_for_each_change() -> None:
    sight, source = Sight(), worker()
    assert sight.decode(source).decode_load == 0
    credit = sight.credits.take("w", 9)
    assert sight.decode(source).decode_load == 1
    sight.credits.give_back(credit)
    assert sight.decode(source).decode_load == 0
    sight.suspects.add("w")
    assert sight.decode(source).is_suspect
    sight.clock.now_s += 3.0
    assert not sight.decode(source).is_suspect
    assert sight.decode(worker(at_s=102.0, decoding_requests=5)).decode_load == 5
    before = sight.decode(source).stats_age_s
    sight.clock.now_s += REMAKE_AFTER_S
    assert sight.decode(source).stats_age_s == pytest.approx(before + REMAKE_AFTER_S)


def test_new_worker_is_judged_by_its_likes_costs_but_not_trusted() -> None:
    sight = Sight()
    known, new = worker("known", costs=FAST), worker("new", costs=CostModel(prefill_samples=3))
    first, second = sight.decodes.views([known, new], {}, 100.0)
    assert first.costs == FAST
    assert second.costs.prefill == FAST.prefill
    assert second.costs.step == FAST.step
    assert not second.costs.knows_prefill
    (alone,) = Sight().decodes.views([worker("silent")], {}, 100.0)
    assert alone.costs == CostModel()
