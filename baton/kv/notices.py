"""What transports say to each other beside the data: notices and metadata, as bytes.

A writer sends one `ChunkNotice` after each write, ordered behind its data, and one `FinalNotice`
when it finishes. `PoolMetadata` is what a worker hands out so that peers can reach its pool. All
are little-endian, versioned and bounded: decoding never trusts a length it read.
"""

import struct
from dataclasses import dataclass

import xxhash

from baton.errors import PreconditionError
from baton.kv.transfer import PoolMemory

MAX_TRANSFER_ID_BYTES = 128
MAX_METADATA_BYTES = 1 << 20
_MAX_NAME_BYTES = 1024
_ADDRESS_SPACE = 1 << 64

_VERSION = 1
_CHUNK_KIND = 1
_FINAL_KIND = 2
_NOTICE = struct.Struct("<BBH")
_CHUNK = struct.Struct("<IIIQ")
_FINAL = struct.Struct("<IIQQI")
_METADATA = struct.Struct("<4sBQQQIHHHI")
_MAGIC = b"BTKV"


@dataclass(frozen=True, slots=True)
class ChunkNotice:
    """One write arrived: `blocks` blocks from `offset` of the destination on.

    `digest` is `blocks_digest` over the block ids that the writer wrote to.
    """

    transfer_id: str
    sequence: int
    offset: int
    blocks: int
    digest: int


@dataclass(frozen=True, slots=True)
class FinalNotice:
    """The writer finished after `chunks` writes; the rest is what its receipt says."""

    transfer_id: str
    chunks: int
    blocks: int
    bytes: int
    digest: int
    tokens: int


Notice = ChunkNotice | FinalNotice


@dataclass(frozen=True, slots=True)
class PoolMetadata:
    """Who owns a pool, where it is, and how the backend reaches it."""

    agent: str
    memory: PoolMemory
    connection: bytes


def encode_notice(notice: Notice) -> bytes:
    """Returns the notice as bytes. The transfer id must fit MAX_TRANSFER_ID_BYTES."""
    name = notice.transfer_id.encode()
    if isinstance(notice, ChunkNotice):
        kind = _CHUNK_KIND
        body = _CHUNK.pack(notice.sequence, notice.offset, notice.blocks, notice.digest)
    else:
        kind = _FINAL_KIND
        body = _FINAL.pack(notice.chunks, notice.blocks, notice.bytes, notice.digest, notice.tokens)
    return _NOTICE.pack(_VERSION, kind, len(name)) + name + body


def decode_notice(raw: bytes) -> Notice | None:
    """Returns the notice, or None when the bytes are none of this version's."""
    if len(raw) < _NOTICE.size:
        return None
    version, kind, name_bytes = _NOTICE.unpack_from(raw)
    body = {_CHUNK_KIND: _CHUNK, _FINAL_KIND: _FINAL}.get(kind)
    if version != _VERSION or body is None or name_bytes > MAX_TRANSFER_ID_BYTES:
        return None
    start = _NOTICE.size + name_bytes
    if len(raw) != start + body.size:
        return None
    try:
        transfer_id = raw[_NOTICE.size : start].decode()
    except UnicodeDecodeError:
        return None
    fields = body.unpack_from(raw, start)
    return (
        ChunkNotice(transfer_id, *fields)
        if kind == _CHUNK_KIND
        else FinalNotice(transfer_id, *fields)
    )


def encode_metadata(metadata: PoolMetadata) -> bytes:
    """Returns the metadata as bytes, for `decode_metadata` at a peer."""
    memory = metadata.memory
    names = [name.encode() for name in (metadata.agent, memory.layout, memory.device)]
    tail = b"".join(names) + metadata.connection
    head = _METADATA.pack(
        _MAGIC,
        _VERSION,
        xxhash.xxh3_64_intdigest(tail),
        memory.base_address,
        memory.block_bytes,
        memory.block_count,
        *(len(name) for name in names),
        len(metadata.connection),
    )
    return head + tail


def decode_metadata(raw: bytes) -> PoolMetadata:
    """Returns the metadata. Raises PreconditionError (MALFORMED_METADATA)."""
    if not _METADATA.size <= len(raw) <= MAX_METADATA_BYTES:
        raise _malformed(f"{len(raw)} bytes")
    magic, version, digest, address, block_bytes, block_count, *sizes = _METADATA.unpack_from(raw)
    if magic != _MAGIC or version != _VERSION:
        raise _malformed("not of this version of Baton")
    if len(raw) != _METADATA.size + sum(sizes) or max(sizes[:-1]) > _MAX_NAME_BYTES:
        raise _malformed("lengths do not fit")
    # A backend may trust its own part blindly, so damage must not get that far.
    if digest != xxhash.xxh3_64_intdigest(raw[_METADATA.size :]):
        raise _malformed("it was damaged")
    if address + block_bytes * block_count >= _ADDRESS_SPACE:
        raise _malformed("the pool does not fit an address space")
    agent, layout, device = (_decode_name(name) for name in _split_names(raw, sizes[:-1]))
    memory = PoolMemory(address, block_bytes, block_count, layout, device)
    return PoolMetadata(agent, memory, raw[len(raw) - sizes[-1] :])


def _split_names(raw: bytes, sizes: list[int]) -> list[bytes]:
    names: list[bytes] = []
    start = _METADATA.size
    for size in sizes:
        names.append(raw[start : start + size])
        start += size
    return names


def _decode_name(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        raise _malformed("a name is not UTF-8") from error


def _malformed(what: str) -> PreconditionError:
    return PreconditionError(
        f"malformed transfer metadata: {what}; do both workers run the same version?",
        reason="MALFORMED_METADATA",
    )
