"""The paged pool's tensor and the one attention function that reads and writes it.

The model code is the library's. Each of its layers calls `paged_attention` with the new tokens'
queries, keys and values; the step that travels through the model's keyword arguments knows which
sequence each token belongs to and where its KV goes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

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
    """The pool's memory, block-major: [blocks, layers, 2, block size, KV heads, head size].

    A block is one contiguous range of bytes with the keys and values of all layers. The views let
    a layer write token rows and gather whole blocks with one index that is the same for all layers.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        blocks, layers, _, size, heads, width = tensor.shape
        self.block_size = size
        self.kv_heads = heads
        self.head_dim = width
        self.rows_per_block = layers * 2 * size
        self.halves_per_block = layers * 2
        rows = tensor.view(blocks * self.rows_per_block, heads * width)
        halves = tensor.view(blocks * self.halves_per_block, size * heads * width)
        self._key_rows = [rows[layer * 2 * size :] for layer in range(layers)]
        self._value_rows = [rows[(layer * 2 + 1) * size :] for layer in range(layers)]
        self._key_halves = [halves[layer * 2 :] for layer in range(layers)]
        self._value_halves = [halves[layer * 2 + 1 :] for layer in range(layers)]

    def write(self, layer: int, rows: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Stores new keys and values [1, KV heads, tokens, head size] at `rows`."""
        count = rows.shape[0]
        self._key_rows[layer].index_copy_(0, rows, key[0].transpose(0, 1).reshape(count, -1))
        self._value_rows[layer].index_copy_(0, rows, value[0].transpose(0, 1).reshape(count, -1))

    def gather(
        self, layer: int, halves: torch.Tensor, sequences: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns keys and values [sequences, KV heads, tokens, head size] of block tables."""
        shape = (sequences, -1, self.kv_heads, self.head_dim)
        key = self._key_halves[layer].index_select(0, halves).view(shape).transpose(1, 2)
        value = self._value_halves[layer].index_select(0, halves).view(shape).transpose(1, 2)
        return key, value


@dataclass(slots=True)
class DecodeGroup:
    """Decodes of similar length, one token each, at batch rows `first` to `first + count`.

    `halves` are their block tables, padded to one width; `positions` those of their tokens.
    """

    first: int
    count: int
    halves: torch.Tensor
    positions: torch.Tensor
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, tokens: int, dtype: torch.dtype) -> torch.Tensor:
        """Returns the additive mask [count, 1, 1, tokens], made once per step and window."""
        if window not in self.masks:
            self.masks[window] = _mask(self.positions, tokens, window, dtype)[:, None, None]
        return self.masks[window]


@dataclass(slots=True)
class PrefillChunk:
    """Consecutive tokens of one sequence, at batch rows `first` to `first + count`.

    `halves` is its block table up to the chunk's end, or None when the chunk starts the sequence.
    """

    first: int
    count: int
    start: int
    halves: torch.Tensor | None
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, like: torch.Tensor) -> torch.Tensor | None:
        """Returns the additive mask [count, tokens], or None when plain causal is meant."""
        tokens = self.start + self.count
        if self.start == 0 and (window is None or window >= tokens):
            return None
        if window not in self.masks:
            positions = torch.arange(self.start, tokens, device=like.device)
            self.masks[window] = _mask(positions, tokens, window, like.dtype)
        return self.masks[window]


@dataclass(slots=True)
class PagedStep:
    """One step's batch: decode groups first, then prefill chunks, flat in one row of tokens."""

    kv: KvTensor
    rows: torch.Tensor
    decodes: list[DecodeGroup]
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
        parts = [self._decode(group, layer, query, scaling, window) for group in self.decodes]
        parts += [
            self._prefill(chunk, layer, query, key, value, scaling, window)
            for chunk in self.prefills
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _decode(
        self,
        group: DecodeGroup,
        layer: int,
        query: torch.Tensor,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        heads, width = query.shape[1], query.shape[3]
        keys, values = self.kv.gather(layer, group.halves, group.count)
        mask = group.mask(window, keys.shape[2], query.dtype)
        # All queries of a KV head's group stand at the same position, so they are its rows.
        rows = query[0, :, group.first : group.first + group.count].transpose(0, 1)
        rows = rows.reshape(group.count, self.kv.kv_heads, -1, width)
        mask = mask.expand(-1, -1, rows.shape[2], -1)
        output = scaled_dot_product_attention(rows, keys, values, mask, scale=scaling)
        return output.reshape(group.count, heads, width)

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
        if chunk.halves is None:
            keys, values = key[:, :, span], value[:, :, span]
        else:
            keys, values = self.kv.gather(layer, chunk.halves, 1)
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
