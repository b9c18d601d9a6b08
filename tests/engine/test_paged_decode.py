"""The GPU's decode kernel against plain attention.

Without a GPU: TRITON_INTERPRET=1 python -m pytest tests/engine/test_paged_decode.py, where Triton
is installed.
"""

import os

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from baton.engine.torch.attention import KvTensor

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1 with Triton", allow_module_level=True)
pytest.importorskip("triton")

from baton.engine.torch import paged_decode  # imports triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = (5, 100, 333)
BLOCK = 16


def tables_of(lengths: tuple[int, ...], blocks: int) -> torch.Tensor:
    """Returns block tables that share no block and lie in no order."""
    order = torch.randperm(blocks, generator=torch.Generator().manual_seed(1)).tolist()
    counts = [-(-length // BLOCK) for length in lengths]
    rows = []
    for count in counts:
        mine, order = order[:count], order[count:]
        rows.append(mine + mine[-1:] * (max(counts) - count))
    return torch.tensor(rows)


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(8, 2, 64), (4, 4, 80)])
def test_kernel_attends_as_the_library_does(
    monkeypatch: pytest.MonkeyPatch,
    window: int | None,
    splits: int,
    heads: int,
    kv_heads: int,
    width: int,
) -> None:
    monkeypatch.setattr(paged_decode, "_splits", lambda programs, tokens: splits)
    torch.manual_seed(2)
    kv = KvTensor(torch.randn(40, 3, 2, kv_heads, BLOCK, width, device=DEVICE))
    tables, layer = tables_of(LENGTHS, 40), 2
    query = torch.randn(heads, len(LENGTHS), width, device=DEVICE)
    output = paged_decode.PagedDecode(kv).attend(
        layer, query, tables.to(DEVICE), torch.tensor(LENGTHS, device=DEVICE), None, window
    )
    for row, length in enumerate(LENGTHS):
        seen = kv.tensor[tables[row], layer].transpose(0, 1).transpose(1, 2)
        keys, values = seen.reshape(2, kv_heads, -1, width)[:, :, :length]
        first = 0 if window is None else max(0, length - window)
        expected = scaled_dot_product_attention(
            query[:, row : row + 1], keys[:, first:], values[:, first:], enable_gqa=True
        )[:, 0]
        torch.testing.assert_close(output[row], expected, rtol=1e-3, atol=1e-3)
