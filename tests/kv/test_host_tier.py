"""The host tier below the block pool: what moves, what is told, and that nothing is lost."""

from collections.abc import Sequence

from hypothesis import settings
from hypothesis.stateful import invariant

from baton.blocks import block_hashes
from baton.engine.base import BlocksRemoved
from baton.kv.host import Move
from baton.kv.pool import BlockPool
from tests.unit.test_pool import SIZE, PoolMachine, compute, root_of

FIRST, SECOND, THIRD = list(range(10)), list(range(50, 66)), list(range(70, 86))


class FakeHost:
    """Copies what a test says that blocks contain."""

    def __init__(self, slots: int, contents: dict[int, object]) -> None:
        self.slot_count = slots
        self._contents = contents
        self._slots: dict[int, object] = {}

    def save(self, moves: Sequence[Move]) -> None:
        for block, slot in moves:
            self._slots[slot] = self._contents[block]

    def restore(self, moves: Sequence[Move]) -> None:
        for block, slot in moves:
            self._contents[block] = self._slots[slot]


def make_pool(blocks: int, slots: int) -> tuple[BlockPool, dict[int, object]]:
    contents: dict[int, object] = dict.fromkeys(range(blocks))
    return BlockPool(blocks, SIZE, root_of, host=FakeHost(slots, contents)), contents


def test_evicted_prefix_comes_back_with_its_contents() -> None:
    pool, contents = make_pool(4, 4)
    grant = pool.reserve("a", FIRST)
    assert grant is not None
    contents.update(zip(grant.block_ids, ("one", "two", "rest"), strict=True))
    pool.commit("a", FIRST)
    pool.release("a")
    compute(pool, "b", SECOND)
    assert pool.match(FIRST) == 8
    again = pool.reserve("c", FIRST)
    assert again is not None
    assert again.cached_tokens == 8
    assert [contents[block] for block in again.block_ids[:2]] == ["one", "two"]
    pool.audit()


def test_moved_blocks_are_not_reported_removed_until_the_tier_drops_them() -> None:
    pool, _ = make_pool(4, 2)
    compute(pool, "a", FIRST)
    compute(pool, "b", SECOND)
    moved = pool.take_events()
    assert not any(isinstance(event, BlocksRemoved) for event in moved)
    compute(pool, "c", THIRD)
    removed = [e.hashes for e in pool.take_events() if isinstance(e, BlocksRemoved)]
    dropped = {block_hash for hashes in removed for block_hash in hashes}
    assert set(block_hashes(FIRST, SIZE, root_of(""))) <= dropped
    assert pool.host_counts().used == 2
    assert pool.match(FIRST) == 0


def test_computing_a_block_again_forgets_the_copy_in_the_tier() -> None:
    pool, _ = make_pool(4, 4)
    compute(pool, "a", FIRST)
    compute(pool, "b", SECOND)
    before = pool.host_counts()
    assert before.used == 2
    # Of eight tokens the last must be computed, so their second block is not taken back.
    compute(pool, "c", FIRST[:8])
    assert pool.match(FIRST) == 8
    pool.audit()


def test_blocks_wanted_back_are_not_dropped_for_those_that_make_room() -> None:
    pool, _ = make_pool(4, 2)
    compute(pool, "a", FIRST)
    compute(pool, "b", SECOND)
    grant = pool.reserve("c", FIRST)
    assert grant is not None
    assert grant.cached_tokens == 8
    pool.audit()


class TieredPoolMachine(PoolMachine):
    """The pool's own machine with a tier that is smaller than what is evicted."""

    def __init__(self) -> None:
        super().__init__()
        host = FakeHost(5, _Copied(self.contents))
        self.pool = BlockPool(12, SIZE, root_of, max_events=6, host=host)

    @invariant()
    def conserves_slots(self) -> None:
        counts = self.pool.host_counts()
        assert 0 <= counts.used <= counts.total == 5
        hashes = self.pool.cached_hashes()
        assert len(set(hashes)) == len(hashes)


class _Copied(dict[int, object]):
    """The machine's contents, written through."""

    def __init__(self, contents: dict[int, tuple[str, tuple[int, ...]]]) -> None:
        super().__init__()
        self._contents = contents

    def __getitem__(self, block: int) -> object:
        return self._contents[block]

    def __setitem__(self, block: int, value: object) -> None:
        self._contents[block] = value  # type: ignore[assignment]


TieredPoolMachine.TestCase.settings = settings(
    max_examples=80, stateful_step_count=50, deadline=None, derandomize=True
)
test_two_tiers_agree_with_a_naive_model = TieredPoolMachine.TestCase
