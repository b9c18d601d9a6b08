"""Decode attention straight out of the pool on a GPU: nothing is gathered first.

A Triton kernel in the manner of flash decoding: one program per sequence, KV head and split of
the context reads the keys and values through the block table; a second one joins the splits.
Imported only where there is a GPU and Triton; the check at start compares it with the library.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from triton.errors import TritonError

from baton.engine.torch.attention import KvTensor

FAILURES = (TritonError, RuntimeError, ValueError, TypeError, OSError, AttributeError)
"""What compiling or launching a kernel raises where this machine cannot have it."""

_TILE = 64
"""Tokens that a program reads at once."""
_PROGRAMS = 512
"""As many programs as keep a large GPU busy; with fewer sequences contexts are split."""
_SPLITS = (1, 2, 4, 8, 16)
"""Into how many parts a context may be read; the kernel that joins them is compiled for each."""
_NUMBERS = ("window", "first_unit", "head_stride", "token_stride", "table_stride", "sequences")
"""Triton would compile anew where one of them is 1 or a multiple of 16: seconds, in mid-stream."""


class PagedDecode:
    """Attends single new tokens to their sequences in the pool."""

    def __init__(self, kv: KvTensor) -> None:
        self._kv = kv
        self._is_compiled = False

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

        `tables` [sequences, blocks] and `lengths` are on the device; a length counts the token
        itself. The first call, which is the check at start, compiles for all later ones.
        """
        if query.stride(2) != 1:
            query = query.contiguous()
        if not self._is_compiled:
            self._is_compiled = True
            for splits in _SPLITS:
                self._launch(layer, query, tables, lengths, scaling, window, splits)
        programs = query.shape[1] * self._kv.kv_heads
        splits = _splits(programs, tables.shape[1] * self._kv.block_size)
        return self._launch(layer, query, tables, lengths, scaling, window, splits)

    def _launch(
        self,
        layer: int,
        query: torch.Tensor,
        tables: torch.Tensor,
        lengths: torch.Tensor,
        scaling: float | None,
        window: int | None,
        splits: int,
    ) -> torch.Tensor:
        kv = self._kv
        heads, sequences, width = query.shape
        group = heads // kv.kv_heads
        output = query.new_empty(sequences, heads, width)
        partial = query.new_empty((splits, sequences, heads, width), dtype=torch.float32)
        sums = query.new_empty((2, splits, sequences, heads), dtype=torch.float32)
        scale = width**-0.5 if scaling is None else scaling
        padded = triton.next_power_of_2(width)
        launch: Any = _attend[(sequences, kv.kv_heads, splits)]
        launch(
            query, kv.tensor, tables, lengths, output, partial, sums,
            scale, window or 0, layer * 2 * kv.kv_heads,
            query.stride(0), query.stride(1), tables.stride(0), sequences, splits,
            units=kv.units_per_block, kv_heads=kv.kv_heads, group=group, size=kv.block_size,
            width=width, padded_width=padded, tile=_TILE, is_split=splits > 1,
            padded_group=max(16, triton.next_power_of_2(group)),
        )  # fmt: skip
        if splits > 1:
            join: Any = _join[(sequences, heads)]
            join(
                partial, sums, output, sequences, heads,
                width=width, padded_width=padded, splits=splits,
            )  # fmt: skip
        return output


def _splits(programs: int, tokens: int) -> int:
    """Returns into how many parts each context is read."""
    enough = (s for s in _SPLITS if programs * s >= _PROGRAMS or s * 4 * _TILE >= tokens)
    return next(enough, _SPLITS[-1])


@triton.jit(do_not_specialize=[*_NUMBERS, "splits"])  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    query, pool, tables, lengths, output, partial, sums,
    scale, window, first_unit,
    head_stride, token_stride, table_stride, sequences, splits,
    units: tl.constexpr, kv_heads: tl.constexpr, group: tl.constexpr, size: tl.constexpr,
    width: tl.constexpr, padded_width: tl.constexpr, tile: tl.constexpr, is_split: tl.constexpr,
    padded_group: tl.constexpr,
):  # fmt: skip
    sequence, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + sequence)
    seen_from = tl.where(window > 0, tl.maximum(length - window, 0), 0)
    span = tl.cdiv(tl.cdiv(length, tile), splits) * tile
    start = tl.maximum(split * span, seen_from // tile * tile)
    end = tl.minimum(length, (split + 1) * span)
    columns = tl.arange(0, padded_width)
    row = tl.arange(0, padded_group)
    is_query = (row[:, None] < group) & (columns[None, :] < width)
    heads = head * group + row
    queries = tl.load(
        query + heads[:, None] * head_stride + sequence * token_stride + columns[None, :],
        mask=is_query, other=0.0,
    )  # fmt: skip
    largest = tl.full([padded_group], float("-inf"), tl.float32)
    total = tl.zeros([padded_group], tl.float32)
    sum_ = tl.zeros([padded_group, padded_width], tl.float32)
    for first in range(start, end, tile):
        token = first + tl.arange(0, tile)
        is_seen = (token < end) & (token >= seen_from)
        block = tl.load(tables + sequence * table_stride + token // size, mask=is_seen, other=0)
        unit = block.to(tl.int64) * units + first_unit + head
        offset = unit * (size * width) + (token % size) * width
        where = offset[:, None] + columns[None, :]
        is_there = is_seen[:, None] & (columns[None, :] < width)
        keys = tl.load(pool + where, mask=is_there, other=0.0)
        score = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
        score = tl.where(is_seen[None, :], score, float("-inf"))
        larger = tl.maximum(largest, tl.max(score, 1))
        base = tl.where(larger == float("-inf"), 0.0, larger)
        weight = tl.exp(score - base[:, None])
        shrink = tl.exp(largest - base)
        values = tl.load(pool + where + kv_heads * size * width, mask=is_there, other=0.0)
        added = tl.dot(weight.to(values.dtype), values, input_precision="ieee")
        sum_ = sum_ * shrink[:, None] + added
        total = total * shrink + tl.sum(weight, 1)
        largest = larger
    if is_split:
        part = (split * sequences + sequence) * kv_heads * group + heads
        tl.store(partial + part[:, None] * width + columns[None, :], sum_, mask=is_query)
        tl.store(sums + part, largest, mask=row < group)
        count = splits * sequences * kv_heads * group
        tl.store(sums + count + part, total, mask=row < group)
    else:
        where_out = (sequence * kv_heads * group + heads[:, None]) * width + columns[None, :]
        result = sum_ / total[:, None]
        tl.store(output + where_out, result.to(output.dtype.element_ty), mask=is_query)


@triton.jit(do_not_specialize=["sequences"])  # type: ignore[untyped-decorator]
def _join(  # type: ignore[no-untyped-def]
    partial, sums, output, sequences, heads,
    width: tl.constexpr, padded_width: tl.constexpr, splits: tl.constexpr,
):  # fmt: skip
    sequence, head = tl.program_id(0), tl.program_id(1)
    split = tl.arange(0, splits)
    columns = tl.arange(0, padded_width)
    is_there = columns < width
    part = (split * sequences + sequence) * heads + head
    largest = tl.load(sums + part)
    weight = tl.exp(largest - tl.max(largest, 0))
    total = tl.sum(tl.load(sums + splits * sequences * heads + part) * weight, 0)
    parts = tl.load(
        partial + part[:, None] * width + columns[None, :], mask=is_there[None, :], other=0.0
    )
    result = tl.sum(parts * weight[:, None], 0) / total
    where = (sequence * heads + head) * width + columns
    tl.store(output + where, result.to(output.dtype.element_ty), mask=is_there)
