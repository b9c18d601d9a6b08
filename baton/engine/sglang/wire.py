"""SGLang's cache events as they come off the wire, in both shapes that its releases use. Pure.

Up to 0.5.17 an event is a list, `["BlockStored", hashes, parent, tokens, ...]`; later ones send a
map with `type` and the fields' names. Fields that a release lacks are missing at the end of the
list or from the map.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


def plain_events(batch: Sequence[Any]) -> list[Any]:
    """Returns the events of a decoded batch `[timestamp, events, rank]`."""
    return list(batch[1])


def read_event(raw: Any) -> WireEvent | None:
    """Returns an event of either shape; None for kinds that say nothing about this cache.

    Raises ValueError when it is neither.
    """
    if isinstance(raw, Mapping):
        return _event(str(raw.get("type")), dict(raw))
    if isinstance(raw, Sequence) and raw and isinstance(raw[0], str):
        names = _STORED if raw[0] == "BlockStored" else _REMOVED
        return _event(raw[0], dict(zip(names, raw[1:], strict=False)))
    raise ValueError(f"not a cache event: {raw!r}")


def _event(kind: str, fields: Mapping[str, Any]) -> WireEvent | None:
    medium = str(fields.get("medium") or DEFAULT_MEDIUM)
    if kind == "BlockStored":
        if fields.get("lora_id") is not None:
            return None
        return Stored(
            hashes=tuple(fields["block_hashes"]),
            parent=fields.get("parent_block_hash"),
            tokens=tuple(fields["token_ids"]),
            page_size=int(fields["block_size"]),
            medium=medium,
            cache_salt=str(fields.get("cache_salt") or ""),
        )
    if kind == "BlockRemoved":
        return Removed(tuple(fields["block_hashes"]), medium)
    if kind == "AllBlocksCleared":
        return Cleared()
    raise ValueError(f"unknown cache event {kind!r}")
