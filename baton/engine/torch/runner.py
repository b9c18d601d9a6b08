"""Runs one scheduled step on the model: chunks in, next tokens out."""

from collections.abc import Sequence
from itertools import pairwise
from operator import attrgetter
from typing import NamedTuple

import torch

from baton.blocks import blocks_for
from baton.engine.torch.attention import DecodeGroup, KvTensor, PagedStep, PrefillChunk
from baton.engine.torch.job import Job
from baton.engine.torch.model import LoadedModel
from baton.engine.torch.sampling import Choice, Draw, choose
from baton.engine.torch.scheduler import Chunk
from baton.errors import StartupError

_NARROW_BLOCKS = 8
"""Tables up to this wide are padded to each other whatever that wastes."""


class Sampled(NamedTuple):
    """A job's next token."""

    job: Job
    choice: Choice


class StepRunner:
    """Turns chunks into one flat batch, runs it and samples. Used by one thread."""

    def __init__(self, model: LoadedModel, kv: KvTensor) -> None:
        self._model = model
        self._kv = kv

    def run(self, chunks: Sequence[Chunk]) -> list[Sampled]:
        """Computes all chunks; returns the next token of those that reach their job's end."""
        ordered = _batch_order(chunks)
        logits = self._forward(ordered)
        jobs = [chunk.job for chunk in ordered if chunk.samples]
        if not jobs:
            return []
        draws = [Draw(job.request.sampling, job.seed, len(job.tokens)) for job in jobs]
        return [Sampled(*pair) for pair in zip(jobs, choose(logits, draws), strict=True)]

    def logits(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Computes all chunks; returns logits [rows, vocabulary] instead of tokens."""
        return self._forward(_batch_order(chunks))

    def wait_for_writes(self) -> None:
        """Returns once the KV of the last step is in memory, where a transfer may read it."""
        if self._model.device.type == "cuda":
            torch.cuda.current_stream(self._model.device).synchronize()

    def _forward(self, ordered: Sequence[Chunk]) -> torch.Tensor:
        decodes = [chunk for chunk in ordered if chunk.count == 1]
        step = PagedStep(
            self._kv,
            self._tensor([row for chunk in ordered for row in self._rows(chunk)]),
            self._decode_groups(decodes),
            self._prefill_chunks(ordered[len(decodes) :], len(decodes)),
        )
        ids: list[int] = []
        positions: list[int] = []
        sampled_rows: list[int] = []
        for chunk in ordered:
            end = chunk.start + chunk.count
            ids += chunk.job.tokens[chunk.start : end]
            positions += range(chunk.start, end)
            if chunk.samples:
                sampled_rows.append(len(ids) - 1)
        return self._model.forward(
            self._tensor(ids), self._tensor(positions), self._tensor(sampled_rows), step
        )

    def _rows(self, chunk: Chunk) -> list[int]:
        """Returns where the chunk's new keys go, as rows of layer 0."""
        size, per_block = self._kv.block_size, self._kv.rows_per_block
        rows: list[int] = []
        at, end = chunk.start, chunk.start + chunk.count
        while at < end:
            index, slot = divmod(at, size)
            count = min(size - slot, end - at)
            base = chunk.job.blocks[index] * per_block + slot
            rows += range(base, base + count)
            at += count
        return rows

    def _decode_groups(self, decodes: Sequence[Chunk]) -> list[DecodeGroup]:
        """Groups decodes, sorted by width, so that padding at most doubles what is gathered."""
        size = self._kv.block_size
        widths = [blocks_for(chunk.start + 1, size) for chunk in decodes]
        bounds: list[int] = []
        limit = 0
        for index, width in enumerate(widths):
            if not bounds or width * 2 < limit:
                bounds.append(index)
                limit = width if width > _NARROW_BLOCKS else 0
        bounds.append(len(decodes))
        return [
            DecodeGroup(
                first,
                end - first,
                self._halves([c.job.blocks for c in decodes[first:end]], widths[first:end]),
                self._tensor([chunk.start for chunk in decodes[first:end]]),
            )
            for first, end in pairwise(bounds)
            if first < end
        ]

    def _prefill_chunks(self, chunks: Sequence[Chunk], first: int) -> list[PrefillChunk]:
        prefills: list[PrefillChunk] = []
        for chunk in chunks:
            width = blocks_for(chunk.start + chunk.count, self._kv.block_size)
            halves = self._halves([chunk.job.blocks], [width]) if chunk.start else None
            prefills.append(PrefillChunk(first, chunk.count, chunk.start, halves))
            first += chunk.count
        return prefills

    def _halves(self, tables: Sequence[Sequence[int]], widths: Sequence[int]) -> torch.Tensor:
        """Returns the tables as one index of layer 0's keys, padded with each one's last block."""
        per_block, widest = self._kv.halves_per_block, widths[0]
        index: list[int] = []
        for table, width in zip(tables, widths, strict=True):
            index += [block * per_block for block in table[:width]]
            index += [table[width - 1] * per_block] * (widest - width)
        return self._tensor(index)

    def _tensor(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long).to(self._model.device, non_blocking=True)


def _batch_order(chunks: Sequence[Chunk]) -> list[Chunk]:
    """Returns single tokens first, longest sequence first, so that each group is one range."""
    singles = [chunk for chunk in chunks if chunk.count == 1]
    singles.sort(key=attrgetter("start"), reverse=True)
    return singles + [chunk for chunk in chunks if chunk.count > 1]


def allocate_kv(model: LoadedModel, block_size: int, kv_memory_bytes: int) -> KvTensor:
    """Allocates as many blocks as fit. Raises StartupError when not even two fit."""
    shape = (model.layers, 2, block_size, model.kv_heads, model.head_dim)
    block_bytes = torch.Size(shape).numel() * model.dtype.itemsize
    blocks = kv_memory_bytes // block_bytes
    if blocks < 2:
        raise StartupError(
            f"kv_memory_bytes {kv_memory_bytes} holds {blocks} blocks of {block_bytes} bytes; "
            "give at least two"
        )
    # Zeroed: padding may read blocks that were never written, and their NaN would spread. Written
    # out, not mapped lazily as by torch.zeros: the first transfer should not pay the page faults.
    memory = torch.empty((blocks, *shape), dtype=model.dtype, device=model.device).zero_()
    return KvTensor(memory)


def kv_layout(model: LoadedModel, block_size: int) -> str:
    """Names what two pools must share before bytes may move between them."""
    dtype = str(model.dtype).removeprefix("torch.")
    return (
        f"block-major/{dtype}/layers={model.layers}/kv_heads={model.kv_heads}"
        f"/head_dim={model.head_dim}/block_size={block_size}"
    )
