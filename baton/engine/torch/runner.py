"""Runs one scheduled step on the model: chunks in, next tokens out."""

from array import array
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import NamedTuple

import torch

from baton.blocks import blocks_for
from baton.engine.torch.attention import (
    DecodeBatch,
    DecodeGroup,
    DecodeKernel,
    KernelDecodes,
    KvTensor,
    PagedStep,
    PrefillChunk,
)
from baton.engine.torch.graphs import DecodeGraphs, DecodeInputs
from baton.engine.torch.job import Job
from baton.engine.torch.model import LoadedModel
from baton.engine.torch.ranges import named_range
from baton.engine.torch.sampling import Choice, Draw, choose
from baton.engine.torch.scheduler import Chunk
from baton.errors import StartupError
from baton.kv.segment import Segment

_NARROW_BLOCKS = 8
"""Tables up to this wide are padded to each other whatever that wastes."""
_GATHERED_BLOCKS = 4096
"""Most blocks gathered at once; bounds the memory beside the pool."""


class Sampled(NamedTuple):
    """A job's next token."""

    job: Job
    choice: Choice


class _Batch(NamedTuple):
    """What the model's forward pass takes."""

    input_ids: torch.Tensor
    positions: torch.Tensor
    sampled_rows: torch.Tensor
    step: PagedStep


class StepRunner:
    """Turns chunks into one flat batch, runs it and samples. Used by one thread.

    With `graphs`, steps of only decodes are replayed where there is room for them.
    """

    def __init__(
        self,
        model: LoadedModel,
        kv: KvTensor,
        kernel: DecodeKernel | None = None,
        graphs: DecodeGraphs | None = None,
    ) -> None:
        self._model = model
        self._kv = kv
        self._kernel = kernel
        self._graphs = graphs

    def run(self, chunks: Sequence[Chunk]) -> list[Sampled]:
        """Computes all chunks; returns the next token of those that reach their job's end."""
        ordered = _batch_order(chunks)
        logits = self._forward(ordered)
        jobs = [chunk.job for chunk in ordered if chunk.samples]
        if not jobs:
            return []
        draws = [Draw(job.request.sampling, job.seed, len(job.tokens)) for job in jobs]
        with named_range("baton.sample", self._model.device):
            choices = choose(logits, draws)
        return [Sampled(*pair) for pair in zip(jobs, choices, strict=True)]

    def logits(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Computes all chunks; returns logits [rows, vocabulary] until the next step."""
        return self._forward(_batch_order(chunks))

    def wait_for_writes(self) -> None:
        """Returns once the KV of the last step is in memory, where a transfer may read it."""
        if self._model.device.type == "cuda":
            torch.cuda.default_stream(self._model.device).synchronize()

    def _forward(self, ordered: Sequence[Chunk]) -> torch.Tensor:
        graphs, device = self._graphs, self._model.device
        if graphs is not None and _fits(graphs, ordered):
            return self._replay(graphs, ordered)
        with named_range("baton.prepare", device):
            batch = self._batch(ordered)
        with named_range(f"baton.forward tokens={batch.input_ids.shape[0]}", device):
            return self._model.forward(*batch)

    def _replay(self, graphs: DecodeGraphs, decodes: Sequence[Chunk]) -> torch.Tensor:
        device = self._model.device
        with named_range("baton.prepare", device):
            graphs.load(self._decode_inputs(decodes))
        with named_range(f"baton.forward tokens={len(decodes)}", device):
            return graphs.replay(len(decodes))

    def _decode_inputs(self, decodes: Sequence[Chunk]) -> DecodeInputs:
        ids = torch.tensor([chunk.job.tokens[chunk.start] for chunk in decodes])
        positions = torch.tensor([chunk.start for chunk in decodes])
        return DecodeInputs(
            ids, positions, self._slots(decodes, positions), self._decode_tables(decodes)
        )

    def _batch(self, ordered: Sequence[Chunk]) -> "_Batch":
        decodes = [chunk for chunk in ordered if chunk.count == 1]
        prefills = ordered[len(decodes) :]
        ids = array("q")
        sampled_rows = array("q")
        for chunk in ordered:
            ids.extend(chunk.job.tokens[chunk.start : chunk.start + chunk.count])
            if chunk.samples:
                sampled_rows.append(len(ids) - 1)
        starts = torch.tensor([chunk.start for chunk in decodes], dtype=torch.long)
        spans = [torch.arange(c.start, c.start + c.count) for c in prefills]
        positions = torch.cat([starts, *spans])
        step = PagedStep(
            self._kv,
            self._kv.rows(self._slots(ordered, positions)),
            self._decode_groups(decodes, starts),
            self._prefill_chunks(prefills, len(decodes)),
        )
        return _Batch(
            self._to_device(_tensor(ids)),
            self._to_device(positions),
            self._to_device(_tensor(sampled_rows)),
            step,
        )

    def _slots(self, ordered: Sequence[Chunk], positions: torch.Tensor) -> torch.Tensor:
        """Returns each token's place in the pool: block x block size + offset."""
        size = self._kv.block_size
        blocks = array("q")
        first_of: list[int] = []
        for chunk in ordered:
            first = chunk.start // size
            last = blocks_for(chunk.start + chunk.count, size)
            first_of.append(len(blocks) - first)
            blocks += chunk.job.blocks[first:last]
        counts = torch.tensor([chunk.count for chunk in ordered])
        firsts = torch.tensor(first_of).repeat_interleave(counts)
        index = firsts + positions.div(size, rounding_mode="floor")
        return _tensor(blocks)[index] * size + positions.remainder(size)

    def _decode_groups(
        self, decodes: Sequence[Chunk], starts: torch.Tensor
    ) -> Sequence[DecodeBatch]:
        """Groups decodes, sorted by width, so that padding at most doubles what is gathered."""
        if self._kernel is not None and decodes:
            tables = self._to_device(self._decode_tables(decodes))
            lengths = self._to_device(starts + 1)
            return [KernelDecodes(self._kernel, 0, len(decodes), tables, lengths)]
        widths = self._widths(decodes)
        return [
            DecodeGroup(
                first,
                end - first,
                self._units([c.job.blocks for c in decodes[first:end]], widths[first:end]),
                self._to_device(starts[first:end]),
            )
            for first, end in _groups(widths)
        ]

    def _decode_tables(self, decodes: Sequence[Chunk]) -> torch.Tensor:
        return _padded([chunk.job.blocks for chunk in decodes], self._widths(decodes))

    def _widths(self, decodes: Sequence[Chunk]) -> list[int]:
        return [blocks_for(chunk.start + 1, self._kv.block_size) for chunk in decodes]

    def _prefill_chunks(self, chunks: Sequence[Chunk], first: int) -> list[PrefillChunk]:
        prefills: list[PrefillChunk] = []
        for chunk in chunks:
            width = blocks_for(chunk.start + chunk.count, self._kv.block_size)
            units = self._units([chunk.job.blocks], [width]) if chunk.start else None
            prefills.append(PrefillChunk(first, chunk.count, chunk.start, units))
            first += chunk.count
        return prefills

    def _units(self, tables: Sequence["array[int]"], widths: Sequence[int]) -> torch.Tensor:
        return self._kv.units(_padded(tables, widths))

    def _to_device(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self._model.device, non_blocking=True)


def _fits(graphs: DecodeGraphs, ordered: Sequence[Chunk]) -> bool:
    """Tells whether a step, in batch order, is only decodes and a graph has room for them."""
    return (
        ordered[-1].count == 1
        and all(chunk.samples for chunk in ordered)
        and graphs.has_room(len(ordered), ordered[0].start + 1)
    )


def _tensor(values: "array[int]") -> torch.Tensor:
    """Returns the same memory as a tensor; an empty one has none to share."""
    if not values:
        return torch.empty(0, dtype=torch.long)
    return torch.frombuffer(values, dtype=torch.long)


def _padded(tables: Sequence["array[int]"], widths: Sequence[int]) -> torch.Tensor:
    """Returns tables [sequences, blocks] as wide as the first, padded with each one's last block.

    Another sequence's block could hold what spreads even where it is masked.
    """
    widest = widths[0]
    flat = array("q")
    for table, width in zip(tables, widths, strict=True):
        flat += table[:width]
        flat += table[width - 1 : width] * (widest - width)
    return _tensor(flat).view(len(tables), widest)


def _groups(widths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yields ranges of falling widths that are gathered together.

    Padding at most doubles what is gathered, and no range gathers more than _GATHERED_BLOCKS.
    """
    first = 0
    while first < len(widths):
        limit = widths[first] if widths[first] > _NARROW_BLOCKS else 0
        most = first + max(1, _GATHERED_BLOCKS // widths[first])
        end = first + 1
        while end < min(most, len(widths)) and widths[end] * 2 >= limit:
            end += 1
        yield first, end
        first = end


def _batch_order(chunks: Sequence[Chunk]) -> list[Chunk]:
    """Returns single tokens first, longest sequence first, so that each group is one range."""
    singles = [chunk for chunk in chunks if chunk.count == 1]
    singles.sort(key=attrgetter("start"), reverse=True)
    return singles + [chunk for chunk in chunks if chunk.count > 1]


def allocate_kv(model: LoadedModel, block_size: int, kv_memory_bytes: int) -> KvTensor:
    """Allocates as many blocks as fit. Raises StartupError when not even two fit."""
    shape = (model.layers, 2, model.kv_heads, block_size, model.head_dim)
    block_bytes = torch.Size(shape).numel() * model.dtype.itemsize
    blocks = kv_memory_bytes // block_bytes
    if blocks < 2:
        raise StartupError(
            f"kv_memory_bytes {kv_memory_bytes} holds {blocks} blocks of {block_bytes} bytes; "
            "give at least two"
        )
    # Zeroed: padding may read blocks that were never written, and their NaN would spread. Written
    # out, not mapped lazily as by torch.zeros: the first transfer should not pay the page faults.
    if model.device.type != "cpu":
        memory = torch.empty((blocks, *shape), dtype=model.dtype, device=model.device).zero_()
        return KvTensor(memory)
    segment = Segment(blocks * block_bytes)
    memory = torch.frombuffer(segment.buffer, dtype=torch.uint8).zero_().view(model.dtype)
    return KvTensor(memory.view(blocks, *shape), segment)


def kv_layout(model: LoadedModel, block_size: int) -> str:
    """Names what two pools must share before bytes may move between them."""
    dtype = str(model.dtype).removeprefix("torch.")
    return (
        f"block-head-major/{dtype}/layers={model.layers}/kv_heads={model.kv_heads}"
        f"/head_dim={model.head_dim}/block_size={block_size}"
    )
