"""gathered.py: attention over gathered blocks is what the reference's attend defines."""

from __future__ import annotations

import pytest
import torch

from prism_gen.runtime import gathered, reference
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.selection import Selection, diagonal_blocks
from tests.cpu.small_cases import HEADS, SHAPES, Heads, Shape, tensors


@pytest.mark.parametrize("most_gathered", [1, 1 << 23], ids=["one-row", "together"])
@pytest.mark.parametrize("shared", [False, True], ids=["head", "group"])
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_attend(
    shape: Shape, heads: Heads, shared: bool, most_gathered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathered, "MOST_GATHERED", most_gathered)
    q, k, v = tensors(shape, heads)
    grid, lists = BlockGrid(*shape), heads[2] if shared else heads[1]
    mask = torch.rand(heads[0], lists, grid.num_q_blocks, grid.num_k_blocks) < 0.4
    selection = Selection.from_mask(mask | diagonal_blocks(grid, q.device), grid)
    found = gathered.gathered_attention(q, k, v, selection, softmax_scale=0.3)
    out, _ = reference.attend(q, k, v, selection, softmax_scale=0.3)
    torch.testing.assert_close(found, out)
