"""The paged pool's tensor and the one attention function that reads and writes it.

The model code is the library's. Each of its layers calls `paged_attention` with the new tokens'
queries, keys and values; the step that travels through the model's keyword arguments knows which
sequence each token belongs to and where its KV goes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from baton.kv.segment import Segment

ATTENTION_NAME = "baton_paged"
"""The name under which transformers knows `paged_attention`."""


class AttentionStep(Protocol):
    """What a forward pass does with a layer's queries, keys and values."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
        extras: Mapping[str, object],
    ) -> torch.Tensor:
        """Returns [tokens, heads, head size] for tensors [1, heads, tokens, head size]."""
        ...


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    baton_step: AttentionStep,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **extras: object,
) -> tuple[torch.Tensor, None]:
    """Attends as `baton_step` says; the signature is the library's."""
    layer = module.layer_idx
    assert isinstance(layer, int)
    output = baton_step.attend(layer, query, key, value, scaling, sliding_window, extras)
    return output.unsqueeze(0), None


class KvTensor:
    """The pool's memory, block-major: [blocks, layers, 2, KV heads, block size, head size].

    A block is one contiguous range of bytes with the keys and values of all layers. Inside it, a
    head's keys (or values) of one layer are contiguous too: a unit. Units are gathered whole and
    written by rows, with one index that is the same for all layers.
    `segment` is what the tensor lies in when other processes can map it.
    """

    def __init__(self, tensor: torch.Tensor, segment: Segment | None = None) -> None:
        self.tensor = tensor
        self.segment = segment
        blocks, layers, _, heads, size, width = tensor.shape
        self.block_size = size
        self.kv_heads = heads
        self.head_dim = width
        self.units_per_block = layers * 2 * heads
        units = tensor.view(blocks * self.units_per_block, size * width)
        rows = tensor.view(blocks * self.units_per_block * size, width)
        keys = [layer * 2 * heads for layer in range(layers)]
        self._key_units = [units[first:] for first in keys]
        self._value_units = [units[first + heads :] for first in keys]
        self._key_rows = [rows[first * size :] for first in keys]
        self._value_rows = [rows[(first + heads) * size :] for first in keys]
        self._heads = torch.arange(heads)
        self._scratch = tensor.new_empty((2, 0))

    def units(self, tables: torch.Tensor) -> torch.Tensor:
        """Returns what `gather` takes, from block tables [sequences, blocks] in host memory."""
        index = tables[:, None, :] * self.units_per_block + self._heads[None, :, None]
        return index.view(-1).to(self.tensor.device, non_blocking=True)

    def rows(self, slots: torch.Tensor) -> torch.Tensor:
        """Returns what `write` takes, from the tokens' places: block x block size + offset."""
        size = self.block_size
        blocks = slots.div(size, rounding_mode="floor")
        first = blocks * (self.units_per_block * size) + slots.remainder(size)
        index = first[None, :] + (self._heads * size)[:, None]
        return index.view(-1).to(self.tensor.device, non_blocking=True)

    def write(self, layer: int, rows: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Stores new keys and values [1, KV heads, tokens, head size] at `rows`."""
        shape = (rows.shape[0], self.head_dim)
        self._key_rows[layer].index_copy_(0, rows, key[0].reshape(shape))
        self._value_rows[layer].index_copy_(0, rows, value[0].reshape(shape))

    def gather(
        self, layer: int, units: torch.Tensor, sequences: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns keys and values [sequences, KV heads, tokens, head size] of block tables.

        They lie in memory that the next call uses again: fresh memory for every layer costs more
        in page faults than the copy itself.
        """
        count = units.shape[0]
        width = self.block_size * self.head_dim
        if self._scratch.shape[1] < count * width:
            self._scratch = self.tensor.new_empty((2, count * width))
        shape = (sequences, self.kv_heads, -1, self.head_dim)
        key = self._scratch[0, : count * width].view(count, width)
        value = self._scratch[1, : count * width].view(count, width)
        torch.index_select(self._key_units[layer], 0, units, out=key)
        torch.index_select(self._value_units[layer], 0, units, out=value)
        return key.view(shape), value.view(shape)


class DecodeBatch(Protocol):
    """Sequences that each attend with one new token."""

    def attend(
        self,
        kv: KvTensor,
        layer: int,
        query: torch.Tensor,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """Returns [its sequences, heads, head size] for the step's queries."""
        ...


class DecodeKernel(Protocol):
    """Reads the pool through block tables; see baton/engine/torch/paged_decode.py."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        tables: torch.Tensor,
        lengths: torch.Tensor,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """Returns [sequences, heads, head size] for queries [heads, sequences, head size].

        A table's columns beyond its sequence's length hold anything and are not read.
        """
        ...


@dataclass(slots=True)
class KernelDecodes:
    """Decodes that a kernel attends in place, at batch rows `first` to `first + count`."""

    kernel: DecodeKernel
    first: int
    count: int
    tables: torch.Tensor
    lengths: torch.Tensor

    def attend(
        self,
        kv: KvTensor,
        layer: int,
        query: torch.Tensor,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """See DecodeBatch."""
        rows = query[0, :, self.first : self.first + self.count]
        return self.kernel.attend(layer, rows, self.tables, self.lengths, scaling, window)


@dataclass(slots=True)
class DecodeGroup:
    """Decodes of similar length, one token each, at batch rows `first` to `first + count`.

    `units` are their block tables, padded to one width; `positions` those of their tokens.
    """

    first: int
    count: int
    units: torch.Tensor
    positions: torch.Tensor
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, tokens: int, dtype: torch.dtype) -> torch.Tensor:
        """Returns the additive mask [count, 1, 1, tokens], made once per step and window."""
        if window not in self.masks:
            self.masks[window] = _mask(self.positions, tokens, window, dtype)[:, None, None]
        return self.masks[window]

    def attend(
        self,
        kv: KvTensor,
        layer: int,
        query: torch.Tensor,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """See DecodeBatch."""
        heads, width = query.shape[1], query.shape[3]
        keys, values = kv.gather(layer, self.units, self.count)
        mask = self.mask(window, keys.shape[2], query.dtype)
        # All queries of a KV head's group stand at the same position, so they are its rows.
        rows = query[0, :, self.first : self.first + self.count].transpose(0, 1)
        rows = rows.reshape(self.count, kv.kv_heads, -1, width)
        mask = mask.expand(-1, -1, rows.shape[2], -1)
        output = scaled_dot_product_attention(rows, keys, values, mask, scale=scaling)
        return output.reshape(self.count, heads, width)


@dataclass(slots=True)
class PrefillChunk:
    """Consecutive tokens of one sequence, at batch rows `first` to `first + count`.

    `units` is its block table up to the chunk's end, or None when the chunk starts the sequence.
    """

    first: int
    count: int
    start: int
    units: torch.Tensor | None
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, like: torch.Tensor) -> torch.Tensor | None:
        """Returns the mask [count, tokens] to add, or None when plain causal is meant.

        Behind a prefix, a GPU's fast kernel for half precision knows the causal mask that is
        aligned to the context's end, as long as it is not written out.
        """
        tokens = self.start + self.count
        reaches_all = window is None or window >= tokens
        if self.start == 0 and reaches_all:
            return None
        if window not in self.masks:
            if reaches_all and like.is_cuda and like.dtype is not torch.float32:
                self.masks[window] = causal_lower_right(self.count, tokens)
            else:
                positions = torch.arange(self.start, tokens, device=like.device)
                self.masks[window] = _mask(positions, tokens, window, like.dtype)
        return self.masks[window]


@dataclass(slots=True)
class PagedStep:
    """One step's batch: decode groups first, then prefill chunks, flat in one row of tokens."""

    kv: KvTensor
    rows: torch.Tensor
    decodes: Sequence[DecodeBatch]
    prefills: list[PrefillChunk]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
        extras: Mapping[str, object],
    ) -> torch.Tensor:
        """Writes the new keys and values, then attends each sequence to its own."""
        self.kv.write(layer, self.rows, key, value)
        parts = [it.attend(self.kv, layer, query, scaling, window) for it in self.decodes]
        parts += [
            self._prefill(chunk, layer, query, key, value, scaling, window)
            for chunk in self.prefills
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _prefill(
        self,
        chunk: PrefillChunk,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        span = slice(chunk.first, chunk.first + chunk.count)
        if chunk.units is None:
            keys, values = key[:, :, span], value[:, :, span]
        else:
            keys, values = self.kv.gather(layer, chunk.units, 1)
            tokens = chunk.start + chunk.count
            keys, values = keys[:, :, :tokens], values[:, :, :tokens]
        mask = chunk.mask(window, query)
        output = scaled_dot_product_attention(
            query[:, :, span],
            keys,
            values,
            mask,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=True,
        )
        return output[0].transpose(0, 1)


def _mask(
    positions: torch.Tensor, tokens: int, window: int | None, dtype: torch.dtype
) -> torch.Tensor:
    """Returns 0 where a query at `positions` sees one of `tokens` keys, else minus infinity."""
    keys = torch.arange(tokens, device=positions.device)
    hidden = keys > positions[:, None]
    if window is not None:
        hidden |= keys <= positions[:, None] - window
    mask = torch.zeros(hidden.shape, dtype=dtype, device=positions.device)
    return mask.masked_fill_(hidden, float("-inf"))
