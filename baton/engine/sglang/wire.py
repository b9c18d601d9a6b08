"""SGLang's cache events as they come off the wire, in both shapes that its releases use. Pure.

Up to 0.5.17 an event is a list, `["BlockStored", hashes, parent, tokens, ...]`; later ones send a
map with `type` and the fields' names. Fields that a release lacks are missing at the end of the
list or from the map.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

_STORED = (
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "cache_salt",
)
_REMOVED = ("block_hashes", "medium")
DEFAULT_MEDIUM = "GPU"

_BATCH_HEAD = 2
_TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]


@dataclass(frozen=True, slots=True)
class Stored:
    """Pages of one chain below `parent` became reusable; `tokens` are all of theirs."""

    hashes: tuple[int, ...]
    parent: int | None
    tokens: tuple[int, ...]
    page_size: int
    medium: str
    cache_salt: str


@dataclass(frozen=True, slots=True)
class Removed:
    """Pages left one medium."""

    hashes: tuple[int, ...]
    medium: str


@dataclass(frozen=True, slots=True)
class Cleared:
    """Nothing is reusable any more."""


WireEvent = Stored | Removed | Cleared


class _StoredFields(msgspec.Struct, frozen=True):
    block_hashes: tuple[int, ...]
    token_ids: tuple[_TokenId, ...]
    block_size: int
    parent_block_hash: int | None = None
    lora_id: object = None
    medium: str | None = None
    cache_salt: str | None = None


class _RemovedFields(msgspec.Struct, frozen=True):
    block_hashes: tuple[int, ...]
    medium: str | None = None


def read_batch(payload: bytes) -> list[Any]:
    """Returns the events of a published batch `[timestamp, events, rank]`, for `read_event`.

    Raises ValueError when it is none.
    """
    batch = msgspec.msgpack.decode(payload)
    if not isinstance(batch, list) or len(batch) < _BATCH_HEAD or not isinstance(batch[1], list):
        raise ValueError("not a batch of cache events")
    return batch[1]


def read_event(raw: Any) -> WireEvent | None:
    """Returns an event of either shape; None for kinds that say nothing about this cache.

    Raises ValueError when it is neither.
    """
    if isinstance(raw, Mapping):
        return _event(str(raw.get("type")), raw)
    if isinstance(raw, Sequence) and raw and isinstance(raw[0], str):
        names = _STORED if raw[0] == "BlockStored" else _REMOVED
        return _event(raw[0], dict(zip(names, raw[1:], strict=False)))
    raise ValueError(f"not a cache event: {raw!r}")


def _event(kind: str, fields: Mapping[str, Any]) -> WireEvent | None:
    if kind == "BlockStored":
        stored = msgspec.convert(fields, _StoredFields)
        if stored.lora_id is not None:
            return None
        return Stored(
            hashes=stored.block_hashes,
            parent=stored.parent_block_hash,
            tokens=stored.token_ids,
            page_size=stored.block_size,
            medium=stored.medium or DEFAULT_MEDIUM,
            cache_salt=stored.cache_salt or "",
        )
    if kind == "BlockRemoved":
        removed = msgspec.convert(fields, _RemovedFields)
        return Removed(removed.block_hashes, removed.medium or DEFAULT_MEDIUM)
    if kind == "AllBlocksCleared":
        return Cleared()
    raise ValueError(f"unknown cache event {kind!r}")
