"""Token blocks and their chained hashes: how the mesh names a piece of KV cache.

A block is `block_size` consecutive tokens. Its hash covers everything before it, so equal
hashes mean equal prefixes: XXH3-64 over the parent's hash and the block's token ids, both as
little-endian bytes. 64 bits can collide, so a hash is a routing hint; whoever reuses KV
compares the token ids themselves (baton/kv/pool.py).
"""

import struct
from array import array
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain

import xxhash

HASH_SCHEME = "xxh3-64-chained-u32le"
"""Names the scheme at registration; workers with another one are refused."""

_LANE_TOP = 1 << 31
_PARENT = struct.Struct("<Q")
_STRETCH_BLOCKS = 16
_STRETCHES = 4096
"""Stretches of blocks whose hashes are remembered: some megabytes with blocks of 16 tokens."""


def token_bytes(input_ids: Sequence[int]) -> bytes:
    """Returns the token ids as little-endian u32."""
    ids = input_ids if isinstance(input_ids, array) else array("I", input_ids)
    assert ids.itemsize == 4
    return ids.tobytes()


def all_below(input_ids: Sequence[int], limit: int) -> bool:
    """Tells whether all token ids are from 0 to `limit` - 1; the limit is at most 2^31.

    They are looked at as the lanes of one long number: adding what `limit` lacks to 2^31 carries
    into the highest bit of just those lanes that are not below it.
    """
    try:
        data = token_bytes(input_ids)
    except OverflowError:
        return False
    lanes = int.from_bytes(data, "little")
    ones = int.from_bytes(b"\1\0\0\0" * len(input_ids), "little")
    return not (lanes | lanes + ones * (_LANE_TOP - limit)) & ones * _LANE_TOP


def root_hash(model: str, cache_salt: str = "") -> int:
    """Returns the parent of a prompt's first block: one root per model and cache salt."""
    return xxhash.xxh3_64_intdigest(f"{model}\0{cache_salt}".encode())


def chain_hash(parent: int, block: bytes) -> int:
    """Returns the hash of one block of token bytes under its parent's hash."""
    return xxhash.xxh3_64_intdigest(_PARENT.pack(parent) + block)


def block_hashes(input_ids: Sequence[int], block_size: int, root: int) -> list[int]:
    """Returns the chained hash of each full block of `input_ids`; a partial tail has none."""
    return list(chained_hashes(input_ids, block_size, root))


def chained_hashes(input_ids: Sequence[int], block_size: int, root: int) -> Iterator[int]:
    """Yields what `block_hashes` returns, for whoever may stop early."""
    return chain.from_iterable(_stretches(token_bytes(input_ids), block_size, root))


def packed_block_hashes(data: bytes, block_size: int, root: int) -> list[int]:
    """Returns what `block_hashes` does, for token ids that are little-endian u32 already."""
    return list(chain.from_iterable(_stretches(data, block_size, root)))


def _stretches(data: bytes, block_size: int, root: int) -> Iterator[Sequence[int]]:
    step = 4 * block_size
    stretch = _STRETCH_BLOCKS * step
    rest = len(data) - len(data) % stretch
    parent = root
    for start in range(0, rest, stretch):
        hashes = _remembered_hashes(parent, data[start : start + stretch], step)
        parent = hashes[-1]
        yield hashes
    yield _hashes(parent, data[rest:], step)


def _hashes(parent: int, data: bytes, step: int) -> list[int]:
    pack, digest = _PARENT.pack, xxhash.xxh3_64_intdigest
    hashes: list[int] = []
    for start in range(0, len(data) - step + 1, step):
        parent = digest(pack(parent) + data[start : start + step])
        hashes.append(parent)
    return hashes


@lru_cache(maxsize=_STRETCHES)
def _remembered_hashes(parent: int, data: bytes, step: int) -> tuple[int, ...]:
    """Returns the hashes of a whole stretch: most long prompts begin like one not long ago."""
    return tuple(_hashes(parent, data, step))


def blocks_for(tokens: int, block_size: int) -> int:
    """Returns how many blocks hold `tokens` tokens, a partial one included."""
    return -(-tokens // block_size)


def blocks_digest(block_ids: Sequence[int]) -> int:
    """Returns XXH3-64 over block ids in order: what a transfer receipt proves it wrote."""
    return xxhash.xxh3_64_intdigest(token_bytes(block_ids))
