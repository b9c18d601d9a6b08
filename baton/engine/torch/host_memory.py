"""The host tier's bytes: evicted blocks beside the pool, copied both ways."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from baton.engine.torch.attention import KvTensor
from baton.kv.host import Move


class TorchHostMemory:
    """Memory for as many blocks as fit into `memory_bytes`; pinned where the pool is on a GPU.

    On a GPU the copies have a stream of their own, so that they wait for no step: a block that
    is evicted or was just reserved is not part of one.
    """

    def __init__(self, kv: KvTensor, memory_bytes: int) -> None:
        self._pool = kv.tensor
        shape = self._pool.shape[1:]
        slots = memory_bytes // (shape.numel() * self._pool.dtype.itemsize)
        self._stream: Any = None
        if self._pool.is_cuda:
            self._stream = torch.cuda.Stream(self._pool.device)  # type: ignore[no-untyped-call]
        self._host = torch.empty(
            (slots, *shape), dtype=self._pool.dtype, pin_memory=self._stream is not None
        )

    @property
    def slot_count(self) -> int:
        """How many blocks it holds."""
        return self._host.shape[0]

    def save(self, moves: Sequence[Move]) -> None:
        """Copies blocks of the pool into slots."""
        with self._copying():
            for block, slot in moves:
                self._host[slot].copy_(self._pool[block], non_blocking=True)
        self._wait()

    def restore(self, moves: Sequence[Move]) -> None:
        """Copies slots back into blocks of the pool."""
        with self._copying():
            for block, slot in moves:
                self._pool[block].copy_(self._host[slot], non_blocking=True)
        self._wait()

    def _copying(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _wait(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()
