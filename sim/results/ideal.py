"""What a workload would hit with one cache for everybody: the bounds for any routing."""

from collections.abc import Iterable
from dataclasses import dataclass

from sim.engine.pool import SimPool
from sim.workload import SimRequest


@dataclass(frozen=True, slots=True)
class Profile:
    """A workload in figures. Hit rates are shares of all prompt tokens.

    `ideal_hit_rate` is that of one cache without bound, `ideal_at_size` that of one LRU cache as
    large as all pools of the fleet together: it serves each request in order and one at a time.
    """

    requests: int
    prompt_tokens: int
    output_tokens: int
    span_s: float
    ideal_hit_rate: float
    ideal_at_size: float


def profile(requests: Iterable[SimRequest], block_tokens: int, cache_tokens: int) -> Profile:
    """Reads a workload once."""
    seen: set[int] = set()
    pool = SimPool(cache_tokens // block_tokens, block_tokens, _ignore, _ignore)
    count = prompt = output = unbounded = bounded = 0
    last_s = 0.0
    for request in requests:
        count += 1
        prompt += request.prompt_tokens
        output += request.output_tokens
        last_s = request.arrival_s
        unbounded += _seen_tokens(seen, request, block_tokens)
        bounded += _pool_tokens(pool, request)
    total = max(prompt, 1)
    return Profile(count, prompt, output, last_s, unbounded / total, bounded / total)


def _seen_tokens(seen: set[int], request: SimRequest, block_tokens: int) -> int:
    depth = 0
    for block in request.hashes[: (request.prompt_tokens - 1) // block_tokens]:
        if block not in seen:
            break
        depth += 1
    seen.update(request.hashes[depth:])
    return depth * block_tokens


def _pool_tokens(pool: SimPool, request: SimRequest) -> int:
    lease = pool.reserve(request.hashes, request.prompt_tokens)
    if lease is None:
        return 0
    cached = lease.pinned * pool.block_tokens
    pool.commit(lease, request.prompt_tokens)
    pool.release(lease)
    return cached


def _ignore(blocks: object) -> None:
    pass
