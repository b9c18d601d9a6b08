"""Block hashes name prefixes: equal exactly when everything before is equal."""

from array import array

from hypothesis import given
from hypothesis import strategies as st

from baton.blocks import all_below, block_hashes, blocks_digest, blocks_for, root_hash

TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=64)
ROOT = root_hash("model")


def test_known_values_stay_what_they_are() -> None:
    """Other processes and Redis hold these numbers: a change here is a new HASH_SCHEME."""
    assert root_hash("model", "salt") == 2248688825248226334
    assert block_hashes(range(4), 2, 1) == [7131533025222364650, 479685591801593850]


def test_partial_tail_has_no_hash() -> None:
    assert len(block_hashes(range(15), 4, ROOT)) == 3
    assert blocks_for(15, 4) == 4
    assert blocks_for(0, 4) == 0


@given(st.lists(st.integers(-1, 2**32), max_size=40), st.integers(1, 2**31))
def test_all_ids_are_looked_at(ids: list[int], limit: int) -> None:
    assert all_below(ids, limit) == all(0 <= token < limit for token in ids)


@given(st.integers(1, 2**31), st.integers(0, 30), st.integers(0, 30))
def test_the_limit_itself_is_not_below(limit: int, before: int, after: int) -> None:
    ids = array("I", [limit - 1] * before)
    assert all_below(ids, limit)
    ids.append(limit)
    ids.extend([0] * after)
    assert not all_below(ids, limit)


def test_salt_and_model_separate_equal_prompts() -> None:
    roots = {root_hash("a"), root_hash("b"), root_hash("a", "x"), root_hash("a", "y")}
    assert len({block_hashes(range(8), 4, root)[0] for root in roots}) == 4


@given(TOKENS, TOKENS, st.integers(1, 8))
def test_hashes_agree_exactly_on_the_common_prefix(
    a: list[int], b: list[int], block_size: int
) -> None:
    ours, theirs = block_hashes(a, block_size, ROOT), block_hashes(b, block_size, ROOT)
    for i, (x, y) in enumerate(zip(ours, theirs, strict=False)):
        end = (i + 1) * block_size
        assert (x == y) == (a[:end] == b[:end])


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=20, unique=True))
def test_digest_notices_a_swap(block_ids: list[int]) -> None:
    swapped = [block_ids[1], block_ids[0], *block_ids[2:]]
    assert blocks_digest(block_ids) != blocks_digest(swapped)
