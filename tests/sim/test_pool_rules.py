"""The simulated pool against the real one, and single steps against many at a time."""

from hypothesis import given, settings
from hypothesis import strategies as st

from baton.kv.pool import BlockPool
from sim.engine.pool import Lease, SimPool

BLOCK = 4

# A prompt is a path in a small tree: one byte per block, then a partial block.
PROMPTS = st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=5), st.integers(0, BLOCK - 1))
STEPS = st.lists(st.tuples(PROMPTS, st.integers(0, 3), st.booleans()), max_size=40)


def tokens_of(prompt: tuple[list[int], int]) -> list[int]:
    path, tail = prompt
    return [branch for branch in path for _ in range(BLOCK)] + [9] * tail


def hashes_of(prompt: tuple[list[int], int]) -> tuple[int, ...]:
    path, _ = prompt
    return tuple(hash(tuple(path[: depth + 1])) for depth in range(len(path)))


@settings(max_examples=150, deadline=None)
@given(steps=STEPS)
def test_the_simulated_pool_caches_and_evicts_what_the_real_one_does(
    steps: list[tuple[tuple[list[int], int], int, bool]],
) -> None:
    real = BlockPool(9, BLOCK, lambda salt: 1)
    stored: set[int] = set()
    pool = SimPool(9, BLOCK, stored.update, stored.difference_update)
    held: list[tuple[str, Lease]] = []
    for number, (prompt, victim, commits) in enumerate(steps):
        tokens, owner = tokens_of(prompt), f"job {number}"
        assert pool.match(hashes_of(prompt), len(tokens)) == real.match(tokens)
        grant = real.reserve(owner, tokens)
        lease = pool.reserve(hashes_of(prompt), len(tokens))
        assert (grant is None) == (lease is None)
        if grant is not None and lease is not None:
            assert lease.pinned * BLOCK == grant.cached_tokens
            held.append((owner, lease))
            if commits:
                real.commit(owner, tokens)
                pool.commit(lease, len(tokens))
        if held and victim < len(held):
            gone, lease = held.pop(victim)
            real.release(gone)
            pool.release(lease)
        counts = real.counts()
        assert (pool.free, pool.cached, pool.leases) == (counts.free, counts.cached, counts.leases)
        assert len(stored) == len(real.cached_hashes())
    for owner, lease in held:
        real.release(owner)
        pool.release(lease)
    pool.check()
