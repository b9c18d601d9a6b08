"""The block pool: reuse, eviction, accounting, events."""

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import baton.kv.pool as pool_module
from baton.blocks import block_hashes, root_hash
from baton.engine.base import BlocksCleared, BlocksRemoved, BlocksStored
from baton.kv.pool import BlockPool

SIZE = 4


def root_of(salt: str) -> int:
    return root_hash("model", salt)


def make_pool(blocks: int = 8, **options: object) -> BlockPool:
    return BlockPool(blocks, SIZE, root_of, **options)  # type: ignore[arg-type]


def compute(pool: BlockPool, owner: str, tokens: list[int], salt: str = "") -> None:
    """Reserves, computes and releases, as an engine does for a whole request."""
    assert pool.reserve(owner, tokens, salt) is not None
    pool.commit(owner, tokens)
    pool.release(owner)


def test_released_prefix_is_reused_by_the_next_request() -> None:
    pool = make_pool()
    compute(pool, "a", list(range(10)))
    grant = pool.reserve("b", [*range(8), 99, 98])
    assert grant is not None
    assert grant.cached_tokens == 8
    assert len(grant.block_ids) == 3
    pool.audit()


def test_full_match_leaves_a_token_to_compute() -> None:
    pool = make_pool()
    compute(pool, "a", list(range(8)))
    assert pool.match(list(range(8))) == 4
    assert pool.match(list(range(9))) == 8


def test_uncommitted_blocks_are_never_reused() -> None:
    pool = make_pool()
    pool.reserve("a", list(range(8)))
    assert pool.match(list(range(9))) == 0
    pool.release("a")
    assert pool.match(list(range(9))) == 0
    assert pool.counts().free == 8


def test_salts_do_not_share() -> None:
    pool = make_pool()
    compute(pool, "a", list(range(8)), salt="tenant-1")
    assert pool.match(list(range(9)), "tenant-2") == 0
    assert pool.match(list(range(9)), "tenant-1") == 8


def test_reuse_can_be_switched_off() -> None:
    pool = make_pool(reuse_prefix=False)
    compute(pool, "a", list(range(8)))
    assert pool.match(list(range(9))) == 0
    assert pool.counts().free == 8
    assert pool.take_events() == []


def test_refused_reservation_changes_nothing() -> None:
    pool = make_pool(4)
    compute(pool, "a", list(range(8)))
    before = pool.counts()
    assert pool.reserve("b", [*range(8), *range(90, 99)]) is None
    assert pool.reserve("b", list(range(50, 62)), spare_blocks=2) is None
    assert pool.counts() == before
    pool.audit()


def test_eviction_takes_the_oldest_leaf_and_keeps_ancestors() -> None:
    pool = make_pool(4)
    compute(pool, "old", list(range(8)))
    compute(pool, "new", list(range(20, 28)))
    pool.take_events()
    pool.reserve("c", [70, 71, 72])
    old = block_hashes(range(8), SIZE, root_of(""))
    assert pool.take_events() == [BlocksRemoved((old[1],))]
    assert pool.match(list(range(9))) == 4
    assert pool.match(list(range(20, 29))) == 8


def test_pinned_prefix_is_not_evicted() -> None:
    pool = make_pool(4)
    compute(pool, "a", list(range(8)))
    pool.reserve("b", list(range(9)))
    assert pool.grow("b", 20) is None
    assert pool.grow("b", 16) is not None
    assert pool.match(list(range(9))) == 8


def test_twin_blocks_keep_one_chain_and_lose_none() -> None:
    pool = make_pool(8)
    pool.reserve("a", list(range(8)))
    pool.reserve("b", list(range(12)))
    pool.commit("a", list(range(8)))
    pool.commit("b", list(range(12)))
    pool.release("a")
    pool.audit()
    assert pool.counts().owned == 5
    pool.release("b")
    pool.audit()
    assert pool.match(list(range(13))) == 12
    assert pool.counts().owned == 0


def test_hash_collision_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "chain_hash", lambda parent, block: 7)
    pool = make_pool()
    compute(pool, "a", [1, 2, 3, 4])
    assert pool.match([1, 2, 3, 4, 5]) == 4
    assert pool.match([9, 9, 9, 9, 5]) == 0
    compute(pool, "b", [9, 9, 9, 9, 8, 8, 8, 8])
    assert pool.match([9, 9, 9, 9, 5]) == 0
    assert pool.match([1, 2, 3, 4, 1, 2, 3, 4, 5]) == 4
    pool.audit()
    assert pool.counts().cached == 1


def test_equal_block_under_another_parent_is_a_miss() -> None:
    pool = make_pool()
    compute(pool, "a", [1, 1, 1, 1, 2, 2, 2, 2])
    assert pool.match([2, 2, 2, 2, 0]) == 0


def test_events_follow_the_cache_in_order() -> None:
    pool = make_pool()
    pool.reserve("a", list(range(12)))
    pool.commit("a", list(range(6)))
    pool.commit("a", list(range(12)))
    hashes = block_hashes(range(12), SIZE, root_of(""))
    assert pool.take_events() == [
        BlocksStored(root_of(""), (hashes[0],)),
        BlocksStored(hashes[0], (hashes[1], hashes[2])),
    ]
    assert pool.take_events() == []
    assert sorted(pool.cached_hashes()) == sorted(hashes)


def test_unread_events_become_one_snapshot() -> None:
    pool = make_pool(max_events=1)
    compute(pool, "a", list(range(8)))
    compute(pool, "b", list(range(20, 28)))
    events = pool.take_events()
    assert events[0] == BlocksCleared()
    assert replayed(set(), events) == set(pool.cached_hashes())
    assert pool.take_events() == []


def replayed(known: set[int], events: list[object]) -> set[int]:
    """Returns what a reader of the events believes to be cached."""
    for event in events:
        if isinstance(event, BlocksStored):
            assert event.parent in known or event.parent in (root_of(""), root_of("x"))
            known |= set(event.hashes)
        elif isinstance(event, BlocksRemoved):
            known -= set(event.hashes)
        else:
            known.clear()
    return known


class PoolMachine(RuleBasedStateMachine):
    """Drives the pool against a model that knows owners, tokens and what each block contains."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = make_pool(12, max_events=6)
        self.owners: dict[str, tuple[str, list[int]]] = {}
        self.computed: dict[str, int] = {}
        self.tables: dict[str, tuple[int, ...]] = {}
        self.contents: dict[int, tuple[str, tuple[int, ...]]] = {}
        self.known: set[int] = set()
        self.serial = 0

    prompts = st.lists(st.integers(0, 1), min_size=1, max_size=26)

    @rule(tokens=prompts, salt=st.sampled_from(["", "x"]), spare=st.integers(0, 2))
    def reserve(self, tokens: list[int], salt: str, spare: int) -> None:
        before, matched = self.pool.counts(), self.pool.match(tokens, salt)
        self.serial += 1
        owner = f"r{self.serial}"
        grant = self.pool.reserve(owner, tokens, salt, spare_blocks=spare)
        if grant is None:
            assert self.pool.counts() == before
            return
        assert grant.cached_tokens == matched < len(tokens)
        self.assert_prefix_contents(grant.block_ids, matched, tokens, salt)
        self.assert_fresh(grant.block_ids[matched // SIZE :])
        self.owners[owner] = (salt, tokens)
        self.computed[owner] = matched
        self.tables[owner] = grant.block_ids

    @precondition(lambda self: self.owners)
    @rule(data=st.data(), more=prompts)
    def grow(self, data: st.DataObject, more: list[int]) -> None:
        owner = data.draw(st.sampled_from(sorted(self.owners)))
        salt, tokens = self.owners[owner]
        fresh = self.pool.grow(owner, len(tokens) + len(more))
        if fresh is not None:
            self.assert_fresh(fresh)
            self.owners[owner] = (salt, tokens + more)
            self.tables[owner] += fresh

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def compute_and_commit(self, data: st.DataObject) -> None:
        owner = data.draw(st.sampled_from(sorted(self.owners)))
        salt, tokens = self.owners[owner]
        end = data.draw(st.integers(self.computed[owner], len(tokens)))
        table = self.tables[owner]
        assert table == self.pool.table(owner)
        for index in range(self.computed[owner] // SIZE, end // SIZE):
            self.contents[table[index]] = (salt, tuple(tokens[: (index + 1) * SIZE]))
        self.computed[owner] = end
        self.pool.commit(owner, tokens[:end])

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        owner = data.draw(st.sampled_from(sorted(self.owners)))
        self.pool.release(owner)
        del self.owners[owner], self.computed[owner], self.tables[owner]

    @rule()
    def read_events(self) -> None:
        self.known = replayed(self.known, list(self.pool.take_events()))
        assert self.known == set(self.pool.cached_hashes())

    @invariant()
    def conserves_blocks(self) -> None:
        self.pool.audit()
        counts = self.pool.counts()
        assert counts.free + counts.cached + counts.owned == counts.total == 12
        assert counts.leases == len(self.owners)
        if not self.owners:
            assert counts.owned == 0

    def assert_fresh(self, blocks: tuple[int, ...]) -> None:
        held = {block for table in self.tables.values() for block in table}
        assert not held & set(blocks)
        assert len(set(blocks)) == len(blocks)

    def assert_prefix_contents(
        self, blocks: tuple[int, ...], matched: int, tokens: list[int], salt: str
    ) -> None:
        for index in range(matched // SIZE):
            expected = (salt, tuple(tokens[: (index + 1) * SIZE]))
            assert self.contents[blocks[index]] == expected


PoolMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, derandomize=True
)
test_pool_agrees_with_a_naive_model = PoolMachine.TestCase


def test_long_random_use_returns_every_block() -> None:
    pool, rng = make_pool(64), random.Random(7)
    held: list[str] = []
    for step in range(2000):
        if held and rng.random() < 0.5:
            pool.release(held.pop(rng.randrange(len(held))))
            continue
        tokens = [rng.randrange(2) for _ in range(rng.randrange(1, 60))]
        if pool.reserve(f"o{step}", tokens) is not None:
            pool.commit(f"o{step}", tokens)
            held.append(f"o{step}")
    for owner in held:
        pool.release(owner)
    pool.audit()
    assert pool.counts().owned == 0
