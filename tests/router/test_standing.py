"""Few workers are looked at, and the best is among them."""

import random
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from baton.latency import CostModel
from baton.state.prefix_index import PrefixIndex
from services.router.policies.standing import FIRST, MOST_HOLDERS, Standing
from services.router.policies.terms import rank_prefills, wait_s
from services.router.policy import PrefillView, RouteRequest

BLOCK = 16
CHAIN = list(range(1, 65))
COSTS = CostModel(prefill=(5e-3, 1e-4, 1e-9))


def _fleet(loads: Sequence[int], depths: Sequence[int]) -> tuple[PrefixIndex, list[PrefillView]]:
    index = PrefixIndex()
    views = []
    for number, (load, depth) in enumerate(zip(loads, depths, strict=True)):
        name = f"p{number}"
        index.add(name)
        if depth:
            index.store(name, CHAIN[:depth])
        views.append(
            PrefillView(name, name, "", load, depth * BLOCK, queued_tokens=300 * load, costs=COSTS)
        )
    return index, views


def _standing(views: Sequence[PrefillView]) -> Standing:
    standing = Standing(1, random.Random(1))
    for view in views:
        standing.put(view.worker_id, (wait_s(view),))
    return standing


WORKER = st.tuples(st.integers(0, 12), st.sampled_from([0, 0, 1, 1, 1, 1, 8, 40, 64]))


@given(st.lists(WORKER, min_size=33, max_size=120))
def test_the_cheapest_worker_is_among_the_few(workers: list[tuple[int, int]]) -> None:
    loads, depths = zip(*workers, strict=True)
    index, views = _fleet(loads, depths)
    few = set(_standing(views).few(index.holders(CHAIN, 0.0)))
    request = RouteRequest(prompt_tokens=65 * BLOCK)
    ranked = rank_prefills(request, views)
    least_s = min(cost_s for cost_s, _ in ranked)
    assert any(cost_s <= 1.0001 * least_s for cost_s, view in ranked if view.worker_id in few)


def test_a_thousand_workers_show_a_few() -> None:
    index, views = _fleet([0] * 1000, [1] * 990 + [64] * 10)
    few = _standing(views).few(index.holders(CHAIN, 0.0))
    assert len(few) <= 2 * FIRST + MOST_HOLDERS
    assert sum(view.cached_tokens == 64 * BLOCK for view in views if view.worker_id in few) == FIRST


def test_equal_workers_are_looked_at_in_turn() -> None:
    index, views = _fleet([0] * 200, [0] * 200)
    standing = _standing(views)
    seen = {name for _ in range(200) for name in standing.few(index.holders(CHAIN, 0.0))}
    assert len(seen) > 190


def test_a_worker_moves_when_its_load_changes_and_is_forgotten_when_it_leaves() -> None:
    index, views = _fleet(list(range(40)), [0] * 40)
    standing = _standing(views)
    standing.put("p39", (0.0,))
    standing.drop("p0")
    standing.drop("p0")
    few = standing.few(index.holders(CHAIN, 0.0))
    assert "p39" in few
    assert "p0" not in few
    assert len(standing) == 39


def test_holders_tell_what_a_match_tells() -> None:
    index, views = _fleet([0] * 9, [0, 1, 1, 8, 8, 40, 64, 64, 3])
    holders, depths = index.holders(CHAIN, 0.0), index.match(CHAIN, 0.0)
    assert {view.worker_id: holders.depth(view.worker_id) for view in views} == {
        view.worker_id: depths.get(view.worker_id, 0) for view in views
    }
    assert list(holders.groups()) == [(64, 2), (40, 1), (8, 2), (3, 1), (1, 2)]
