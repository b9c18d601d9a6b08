"""SGLang's cache events as Baton's blocks: both wire shapes, hashes, losses."""

from typing import Any

import pytest

from baton.blocks import block_hashes, root_hash
from baton.engine.base import BlocksCleared, BlocksRemoved, BlocksStored
from baton.engine.sglang.rehash import CacheMirror
from baton.engine.sglang.wire import Cleared, Removed, Stored, read_event

SIZE = 16
TOKENS = [(i * 37) % 3000 + 3 for i in range(96)]
PUBLISHED = [
    -4478017213634126084,
    -7034072536291382625,
    -2329054448516688364,
    8416227071523485618,
    -3825835785926424845,
    -6714766353449108211,
]
"""What SGLang 0.5.23 published for TOKENS, noted from a running engine."""


def root(salt: str = "") -> int:
    return root_hash("model", salt)


def mirror() -> CacheMirror:
    return CacheMirror(SIZE, root)


def stored(
    first: int, last: int, parent: int | None, medium: str = "GPU", salt: str = ""
) -> Stored:
    return Stored(
        tuple(PUBLISHED[first:last]), parent, tuple(TOKENS[SIZE * first : SIZE * last]),
        SIZE, medium, salt,
    )  # fmt: skip


OURS = block_hashes(TOKENS, SIZE, root())


@pytest.mark.parametrize("raw", [
    {"type": "BlockStored", "block_hashes": PUBLISHED, "parent_block_hash": None,
     "token_ids": TOKENS, "block_size": SIZE, "lora_id": None, "medium": "GPU"},
    ["BlockStored", PUBLISHED, None, TOKENS, SIZE, None, "GPU"],
    ["BlockStored", PUBLISHED, None, TOKENS, SIZE, None],
])  # fmt: skip
def test_both_shapes_of_a_stored_event_mean_the_same(raw: Any) -> None:
    assert read_event(raw) == stored(0, 6, None)


@pytest.mark.parametrize("raw", [
    {"type": "BlockRemoved", "block_hashes": [1], "medium": "CPU_PINNED"},
    ["BlockRemoved", [1], "CPU_PINNED"],
])  # fmt: skip
def test_both_shapes_of_a_removed_event_mean_the_same(raw: Any) -> None:
    assert read_event(raw) == Removed((1,), "CPU_PINNED")


@pytest.mark.parametrize("raw", [{"type": "AllBlocksCleared"}, ["AllBlocksCleared"]])
def test_both_shapes_of_a_cleared_event_mean_the_same(raw: Any) -> None:
    assert read_event(raw) == Cleared()


@pytest.mark.parametrize("raw", [7, [], ["Other"], {"type": "Other"}, [1, 2]])
def test_anything_else_is_refused(raw: Any) -> None:
    with pytest.raises(ValueError, match=r"event"):
        read_event(raw)


def test_pages_of_an_adapter_are_not_the_models() -> None:
    raw = ["BlockStored", PUBLISHED, None, TOKENS, SIZE, 3, "GPU"]
    assert read_event(raw) is None


def test_tokens_are_hashed_again_and_checked_against_what_sglang_published() -> None:
    cache = mirror()

    changes = cache.apply([stored(0, 6, None)])

    assert changes == [BlocksStored(root(), tuple(OURS))]
    assert cache.mismatches == 0
    assert all(cache.holds(block) for block in OURS)


def test_pages_below_a_known_parent_continue_its_chain() -> None:
    cache = mirror()
    cache.apply([stored(0, 2, None)])

    changes = cache.apply([stored(2, 6, PUBLISHED[1])])

    assert changes == [BlocksStored(OURS[1], tuple(OURS[2:]))]


def test_run_that_begins_with_known_pages_tells_the_new_ones_only() -> None:
    cache = mirror()
    cache.apply([stored(0, 2, None)])

    assert cache.apply([stored(0, 4, None)]) == [BlocksStored(OURS[1], tuple(OURS[2:4]))]


def test_page_without_its_parent_is_left_out() -> None:
    cache = mirror()

    assert cache.apply([stored(2, 6, PUBLISHED[1])]) == []
    assert (len(cache), cache.orphans) == (0, 4)


def test_page_is_gone_when_its_last_medium_lost_it() -> None:
    cache = mirror()
    cache.apply([stored(0, 1, None), stored(0, 1, None, "CPU_PINNED")])

    assert cache.apply([Removed((PUBLISHED[0],), "GPU")]) == []
    assert cache.apply([Removed((PUBLISHED[0],), "CPU_PINNED")]) == [BlocksRemoved((OURS[0],))]
    assert cache.hashes() == []


def test_another_salt_is_another_root() -> None:
    changes = mirror().apply([stored(0, 1, None, salt="tenant")])

    (expected,) = block_hashes(TOKENS[:SIZE], SIZE, root("tenant"))
    assert changes == [BlocksStored(root("tenant"), (expected,))]


def test_hash_that_is_not_of_its_tokens_is_counted() -> None:
    cache = mirror()
    wrong = Stored((1,), None, tuple(TOKENS[:SIZE]), SIZE, "GPU", "")

    cache.apply([wrong])

    assert cache.mismatches == 1


def test_pages_of_another_size_are_not_blocks() -> None:
    half = Stored((1,), None, tuple(TOKENS[:8]), 8, "GPU", "")
    assert mirror().apply([half]) == []


def test_forgetting_clears_everything() -> None:
    cache = mirror()
    cache.apply([stored(0, 6, None)])

    assert cache.forget() == [BlocksCleared()]
    assert (len(cache), cache.hashes()) == (0, [])
