"""Free blocks: each is given out once, and a prompt's lie side by side."""

from hypothesis import given
from hypothesis import strategies as st

from baton.kv.free import FreeBlocks
from baton.kv.pool import BlockPool

BLOCKS = 12


@given(st.lists(st.tuples(st.sampled_from(["lowest", "highest", "add"]), st.integers(0, BLOCKS))))
def test_blocks_come_from_the_end_that_is_asked_for(steps: list[tuple[str, int]]) -> None:
    free = FreeBlocks(BLOCKS)
    model = set(range(BLOCKS))
    for step, number in steps:
        taken = sorted(set(range(BLOCKS)) - model)
        if step == "add" and taken:
            block = taken[number % len(taken)]
            free.add(block)
            model.add(block)
        elif step == "lowest" and model:
            assert free.take_lowest() == min(model)
            model.remove(min(model))
        elif step == "highest" and model:
            assert free.take_highest() == max(model)
            model.remove(max(model))
        assert list(free) == sorted(model)
        assert len(free) == len(model)


def test_prompts_lie_side_by_side_while_answers_grow_and_others_end() -> None:
    pool = BlockPool(64, 4, lambda salt: 1, reuse_prefix=False)
    for name in ("a", "b"):
        assert pool.reserve(name, [0] * 40) is not None
    for tokens in (44, 48, 52):
        for name in ("a", "b"):
            assert pool.grow(name, tokens)
    pool.release("a")
    grant = pool.reserve("c", [0] * 40)
    assert grant is not None
    first = grant.block_ids[0]
    assert grant.block_ids == tuple(range(first, first + 10))
    pool.audit()
