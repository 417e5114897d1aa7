"""masked.py: dense attention under a mask is what the reference's attend defines."""

from __future__ import annotations

import pytest
import torch

from prism_gen.runtime import reference
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.masked import dense_attention, masked_attention
from prism_gen.runtime.selection import Selection
from tests.cpu.small_cases import HEADS, SHAPES, Heads, Shape, tensors


@pytest.mark.parametrize("shared", [False, True], ids=["head", "group"])
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_attend_and_dense_attend(shape: Shape, heads: Heads, shared: bool) -> None:
    q, k, v = tensors(shape, heads)
    grid, lists = BlockGrid(*shape), heads[2] if shared else heads[1]
    mask = torch.rand(heads[0], lists, grid.num_q_blocks, grid.num_k_blocks) < 0.4
    selection = Selection.from_mask(mask, grid)
    found = masked_attention(q, k, v, selection, softmax_scale=0.3)
    out, lse = reference.attend(q, k, v, selection, softmax_scale=0.3)
    everything = Selection.all_visible(grid, heads[0], lists, q.device)
    _, dense_lse = reference.attend(q, k, v, everything, softmax_scale=0.3)
    torch.testing.assert_close(found.out, out)
    torch.testing.assert_close(found.lse, lse)
    torch.testing.assert_close(found.dense_lse, dense_lse)


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_dense_attention_is_attend_on_everything(heads: Heads) -> None:
    q, k, v = tensors((33, 33, 16, 8), heads)
    everything = Selection.all_visible(BlockGrid(33, 33, 16, 8), heads[0], heads[1], q.device)
    out, _ = reference.attend(q, k, v, everything, softmax_scale=0.3)
    torch.testing.assert_close(dense_attention(q, k, v, softmax_scale=0.3), out)
