"""The prefix cache of an SGLang engine, named by Baton's block hashes. Pure.

SGLang names a page by SHA-256 over its parent's digest and its token ids. The mesh names it by its
own chained hash over the same tokens, so the tokens in each event are hashed again. A page whose
parent is unknown, because events were lost, cannot be named and is left out: the index is a hint.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from baton.blocks import chain_hash, token_bytes
from baton.engine.base import BlocksCleared, BlocksRemoved, BlocksStored, KvEvent
from baton.engine.sglang.wire import Cleared, Removed, Stored, WireEvent

_DIGEST_HEAD = 8


def page_digest(parent: bytes, page: bytes) -> bytes:
    """Returns SGLang's digest of a page of token bytes; `parent` is empty for the first one."""
    return hashlib.sha256(parent + page).digest()


def published_hash(digest: bytes) -> int:
    """Returns the number by which SGLang's events name a page."""
    return int.from_bytes(digest[:_DIGEST_HEAD], "big", signed=True)


@dataclass(slots=True)
class _Page:
    block_hash: int
    digest: bytes
    """SGLang's own, empty where it cannot be followed."""
    media: set[str] = field(default_factory=set)


class CacheMirror:
    """Follows one engine's events.

    `mismatches` counts pages whose published hash is not what SGLang's scheme gives for their
    tokens: the events would then not mean what is read into them.
    """

    def __init__(self, block_size: int, root_of: Callable[[str], int]) -> None:
        self._block_size = block_size
        self._root_of = root_of
        self._pages: dict[int, _Page] = {}
        self._held: set[int] = set()
        self.mismatches = 0
        self.orphans = 0

    def __len__(self) -> int:
        """Returns how many blocks are known."""
        return len(self._pages)

    def hashes(self) -> list[int]:
        """Returns Baton's hashes of all known blocks."""
        return list(self._held)

    def holds(self, block_hash: int) -> bool:
        """Tells whether a block is known by Baton's hash."""
        return block_hash in self._held

    def apply(self, events: Iterable[WireEvent]) -> list[KvEvent]:
        """Takes events in and returns what they mean to the mesh, in order."""
        return [change for event in events for change in self._apply(event)]

    def forget(self) -> list[KvEvent]:
        """Starts over, as after lost events or with a new engine."""
        self._pages.clear()
        self._held.clear()
        return [BlocksCleared()]

    def _apply(self, event: WireEvent) -> Iterator[KvEvent]:
        match event:
            case Stored():
                yield from self._store(event)
            case Removed():
                yield from self._remove(event)
            case Cleared():
                yield from self.forget()

    def _store(self, event: Stored) -> Iterator[KvEvent]:
        if event.page_size != self._block_size:
            return  # a page that is not full, or another cache's
        above = self._pages.get(event.parent) if event.parent is not None else None
        if event.parent is not None and above is None:
            self.orphans += len(event.hashes)
            return
        parent = above.block_hash if above else self._root_of(event.cache_salt)
        digest = above.digest if above else b""
        fresh: list[int] = []
        first_parent = parent
        for index, published in enumerate(event.hashes):
            start = index * self._block_size
            tokens = token_bytes(event.tokens[start : start + self._block_size])
            own, digest = chain_hash(parent, tokens), page_digest(digest, tokens)
            page = self._pages.get(published)
            if page is None:
                page = self._pages[published] = _Page(own, digest)
                self._check(published, digest, event.cache_salt)
                first_parent = first_parent if fresh else parent
                fresh.append(own)
                self._held.add(own)
            page.media.add(event.medium)
            parent = own
        if fresh:
            yield BlocksStored(first_parent, tuple(fresh))

    def _remove(self, event: Removed) -> Iterator[KvEvent]:
        gone = []
        for published in event.hashes:
            page = self._pages.get(published)
            if page is None:
                continue
            page.media.discard(event.medium)
            if not page.media:
                del self._pages[published]
                self._held.discard(page.block_hash)
                gone.append(page.block_hash)
        if gone:
            yield BlocksRemoved(tuple(gone))

    def _check(self, published: int, digest: bytes, cache_salt: str) -> None:
        # A salt enters SGLang's hash in a way that differs between releases.
        if not cache_salt and published_hash(digest) != published:
            self.mismatches += 1
