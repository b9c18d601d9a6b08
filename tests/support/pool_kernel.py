"""A decode kernel in plain torch: it reads the pool through tables and lengths, on any device."""

import torch

from baton.engine.torch.attention import KvTensor


class PoolKernel:
    """What baton/engine/torch/paged_decode.py computes, with nothing but fixed shapes."""

    def __init__(self, kv: KvTensor) -> None:
        self._kv = kv

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        tables: torch.Tensor,
        lengths: torch.Tensor,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """See DecodeKernel."""
        heads, sequences, width = query.shape
        blocks = self._kv.tensor[:, layer][tables]
        shape = (2, sequences, self._kv.kv_heads, -1, width)
        keys, values = blocks.permute(2, 0, 3, 1, 4, 5).reshape(shape)
        tokens = torch.arange(keys.shape[2], device=query.device)
        hidden = tokens >= lengths[:, None]
        if window is not None:
            hidden |= tokens < lengths[:, None] - window
        rows = query.transpose(0, 1).reshape(sequences, self._kv.kv_heads, -1, width)
        scores = rows @ keys.transpose(2, 3) * (width**-0.5 if scaling is None else scaling)
        weights = scores.masked_fill(hidden[:, None, None], float("-inf")).softmax(-1)
        # A table's columns beyond the sequence hold anything; not even their NaN may count.
        values = values.masked_fill(hidden[:, None, :, None], 0.0)
        return (weights @ values).reshape(sequences, heads, width)
