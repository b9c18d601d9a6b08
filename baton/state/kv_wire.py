"""How prefix-cache changes travel: one stream entry is a version byte and then changes in order.

A change is its kind (u8), the number of hashes (u32) and the hashes (u64), all little-endian.
The entry's id carries the sequence number.
"""

import enum
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from baton.engine.base import BlocksCleared, BlocksRemoved, BlocksStored, KvEvent

VERSION = 1
HASH_BYTES = 8
_HEAD = struct.Struct("<BI")


class ChangeKind(enum.IntEnum):
    """What happened to the hashes of a change."""

    STORED = 1
    REMOVED = 2
    CLEARED = 3
    REPLACED = 4
    """The worker wrote its whole set anew: read that instead of going on from here."""


class CacheChange(NamedTuple):
    """Something happened to these blocks; the last two kinds carry no hashes."""

    kind: ChangeKind
    hashes: tuple[int, ...] = ()


def pack_hashes(hashes: Sequence[int]) -> bytes:
    """Returns the hashes as little-endian u64."""
    return struct.pack(f"<{len(hashes)}Q", *hashes)


def unpack_hashes(data: bytes) -> tuple[int, ...]:
    """Reads what `pack_hashes` wrote. Raises ValueError on a broken length."""
    count, rest = divmod(len(data), HASH_BYTES)
    if rest:
        raise ValueError(f"{len(data)} bytes are no whole number of hashes")
    return struct.unpack(f"<{count}Q", data)


def set_members(hashes: Sequence[int]) -> list[bytes]:
    """Returns each hash as a member of the worker's block set."""
    packed = pack_hashes(hashes)
    return [packed[at : at + HASH_BYTES] for at in range(0, len(packed), HASH_BYTES)]


def encode_changes(changes: Iterable[CacheChange]) -> bytes:
    """Returns the changes as the body of one stream entry."""
    parts = [bytes((VERSION,))]
    for change in changes:
        parts.append(_HEAD.pack(change.kind, len(change.hashes)))
        parts.append(pack_hashes(change.hashes))
    return b"".join(parts)


def decode_changes(data: bytes) -> list[CacheChange]:
    """Reads what `encode_changes` wrote. Raises ValueError on anything else."""
    if data[:1] != bytes((VERSION,)):
        raise ValueError(f"unknown version of a cache change: {data[:1]!r}")
    changes = []
    at = 1
    while at < len(data):
        if at + _HEAD.size > len(data):
            raise ValueError("cache change ends in its head")
        kind, count = _HEAD.unpack_from(data, at)
        start = at + _HEAD.size
        at = start + count * HASH_BYTES
        if at > len(data):
            raise ValueError("cache change ends in its hashes")
        changes.append(CacheChange(ChangeKind(kind), unpack_hashes(data[start:at])))
    return changes


def change_of(event: KvEvent) -> CacheChange:
    """Returns the change that an engine's event makes."""
    match event:
        case BlocksStored(hashes=hashes):
            return CacheChange(ChangeKind.STORED, hashes)
        case BlocksRemoved(hashes=hashes):
            return CacheChange(ChangeKind.REMOVED, hashes)
        case BlocksCleared():
            return CacheChange(ChangeKind.CLEARED)
