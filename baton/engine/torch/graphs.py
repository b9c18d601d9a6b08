"""Decode steps recorded once and replayed, so that the host no longer launches every kernel.

A graph replays the same kernels on the same memory. So each batch size has its own, and all read
the batch from buffers that `load` fills before a replay and write logits to one that the next
replay overwrites. A batch between two sizes is padded with copies of its last sequence, which
write what that one writes to where it writes.
"""

import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch

from baton.blocks import blocks_for
from baton.engine.torch.attention import DecodeKernel, KernelDecodes, KvTensor, PagedStep
from baton.engine.torch.model import LoadedModel

Record = Callable[[Callable[[], None]], Callable[[], None]]
"""Runs what it is given at least once and returns what does the same again on the same memory."""

_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Each takes memory and time at start; padding matters less the larger the batch."""


class DecodeInputs(NamedTuple):
    """Decodes in host memory, one row each; `slots` are the new tokens' places in the pool."""

    ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    tables: torch.Tensor


class DecodeGraphs:
    """The recorded steps of up to `max_batch` decodes; `record` comes before all else.

    All methods want torch's inference mode and the thread's usual stream.
    """

    def __init__(
        self, model: LoadedModel, kv: KvTensor, kernel: DecodeKernel, max_batch: int
    ) -> None:
        self.sizes = _SIZES[: bisect_left(_SIZES, max_batch) + 1]
        self._model = model
        self._kv = kv
        self._kernel = kernel
        largest, device = self.sizes[-1], model.device
        width = min(blocks_for(model.context_length, kv.block_size), kv.tensor.shape[0])
        self._ids = torch.zeros(largest, dtype=torch.long, device=device)
        self._positions = torch.zeros_like(self._ids)
        self._rows = kv.rows(torch.zeros(largest, dtype=torch.long))
        self._tables = torch.zeros((largest, width), dtype=torch.long, device=device)
        self._all_rows = torch.arange(largest, device=device)
        self._logits = torch.empty(0)
        self._replays: dict[int, Callable[[], None]] = {}

    def record(self, record: Record) -> None:
        """Records all sizes, the largest first: the others fit into the memory it took.

        Writes to the pool's first block. Raises whatever the model's code or the kernel raises.
        """
        self._logits = torch.empty_like(self._forward(self.sizes[-1]))
        for size in reversed(self.sizes):
            self._replays[size] = record(partial(self._compute, size))

    def has_room(self, sequences: int, tokens: int) -> bool:
        """Tells whether so many sequences, the longest of so many tokens, can be replayed."""
        return sequences <= self.sizes[-1] and tokens <= self._tables.shape[1] * self._kv.block_size

    def load(self, inputs: DecodeInputs) -> None:
        """Copies a batch for which there is room to where the next replay reads it."""
        count, width = inputs.tables.shape
        size = self._size(count)
        padded = torch.arange(size).clamp_(max=count - 1)
        rows = self._kv.rows(inputs.slots[padded])
        self._ids[:size].copy_(inputs.ids[padded], non_blocking=True)
        self._positions[:size].copy_(inputs.positions[padded], non_blocking=True)
        self._rows[: rows.shape[0]].copy_(rows)
        # What other batches left in the columns beyond is never read: no length reaches there.
        self._tables[:size, :width].copy_(inputs.tables[padded], non_blocking=True)

    def replay(self, count: int) -> torch.Tensor:
        """Computes the `count` sequences last loaded; returns their logits until the next call."""
        self._replays[self._size(count)]()
        return self._logits[:count]

    def _size(self, count: int) -> int:
        return self.sizes[bisect_left(self.sizes, count)]

    def _compute(self, size: int) -> None:
        self._logits[:size].copy_(self._forward(size))

    def _forward(self, size: int) -> torch.Tensor:
        positions = self._positions[:size]
        decodes = KernelDecodes(self._kernel, 0, size, self._tables[:size], positions + 1)
        rows = self._rows[: size * self._kv.kv_heads]
        step = PagedStep(self._kv, rows, [decodes], [])
        return self._model.forward(self._ids[:size], positions, self._all_rows[:size], step)


class CudaRecorder:
    """Records work as CUDA graphs that share one pool of memory."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # the library's omission
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], None]) -> Callable[[], None]:
        """See Record. Raises RuntimeError where the work cannot be captured.

        The first, eager run loads and compiles what a capture must not, and refuses work that
        waits for the GPU: a capture that breaks off leaves torch's allocator worse off.
        """
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        # The outer stream context holds where the capture fails: then its own is never left.
        with torch.cuda.stream(self._stream):
            with _waits_refused():
                compute()
            # Other threads, such as a transfer's, may allocate and copy meanwhile.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                compute()
        return graph.replay


@contextmanager
def _waits_refused() -> Iterator[None]:
    """Makes torch raise RuntimeError where the host would wait for the GPU, on any thread."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        # It warns that it may overlook some; the capture itself finds those.
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
