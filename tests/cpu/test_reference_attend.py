"""Attend of the reference against naive float64 attention, on ragged and tiny shapes first.

The naive functions here are independent: plain loops, one full sort per row, float64, no code of the package; written
from method.md alone, so that a slip there shows here.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from prism_gen.runtime import reference
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.selection import Selection
from tests.cpu.small_cases import HEADS, SHAPES, Heads, Shape, tensors


def naive_attend(
    q: Tensor, k: Tensor, v: Tensor, block_mask: Tensor, *, bq: int, bk: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Float64 attention with the block mask spread to tokens; q [batch, seqlen, heads, dim]."""
    group = q.shape[2] // k.shape[2]
    qh, kh, vh = (x.double().transpose(1, 2) for x in (q, k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)))
    seqlen_q, seqlen_k = qh.shape[2], kh.shape[2]
    tokens = block_mask.repeat_interleave(bq, 2).repeat_interleave(bk, 3)[:, :, :seqlen_q, :seqlen_k]
    causal = torch.ones(seqlen_q, seqlen_k, dtype=torch.bool).tril(seqlen_k - seqlen_q)
    scores = (qh @ kh.transpose(-1, -2) * scale).masked_fill(~(tokens & causal), -math.inf)
    lse = scores.logsumexp(-1)
    out = torch.nan_to_num((scores - lse[..., None]).exp()) @ vh
    return out.transpose(1, 2), lse


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attend_matches_naive(shape: Shape, heads: Heads) -> None:
    q, k, v = tensors(shape, heads)
    grid = BlockGrid(*shape)
    mask = torch.rand(heads[0], heads[1], grid.num_q_blocks, grid.num_k_blocks) < 0.4
    selection = Selection.from_mask(mask, grid)
    out, lse = reference.attend(q, k, v, selection, softmax_scale=0.3)
    exact, exact_lse = naive_attend(q, k, v, mask, bq=shape[2], bk=shape[3], scale=0.3)
    torch.testing.assert_close(out, exact)
    torch.testing.assert_close(lse, exact_lse)


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_list_shared_by_a_group_is_that_list_for_each_of_its_heads(shape: Shape, heads: Heads) -> None:
    q, k, v = tensors(shape, heads)
    grid = BlockGrid(*shape)
    shared = torch.rand(heads[0], heads[2], grid.num_q_blocks, grid.num_k_blocks) < 0.4
    each = shared.repeat_interleave(heads[1] // heads[2], 1)
    got, want = (
        reference.attend(q, k, v, Selection.from_mask(mask, grid), softmax_scale=0.3) for mask in (shared, each)
    )
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_everything_selected_is_dense_causal_attention(shape: Shape, heads: Heads) -> None:
    q, k, v = tensors(shape, heads)
    selection = Selection.all_visible(BlockGrid(*shape), heads[0], heads[1], q.device)
    out, _ = reference.attend(q, k, v, selection, softmax_scale=1 / math.sqrt(32))
    causal = torch.ones(shape[0], shape[1], dtype=torch.bool).tril(shape[1] - shape[0])
    qh, kh, vh = (x.transpose(1, 2) for x in (q, k, v))
    dense = scaled_dot_product_attention(qh, kh, vh, attn_mask=causal, enable_gqa=True)
    torch.testing.assert_close(out, dense.transpose(1, 2))


def test_rows_without_a_visible_selected_key_are_zero() -> None:
    """Query block 0 has no blocks; in query block 1 the only block is one that its first rows do not see yet."""
    q, k, v = tensors((8, 8, 4, 2), (1, 1, 1))
    mask = torch.zeros(1, 1, 2, 4, dtype=torch.bool)
    mask[0, 0, 1, 3] = True
    out, lse = reference.attend(q, k, v, Selection.from_mask(mask, BlockGrid(8, 8, 4, 2)), softmax_scale=1.0)
    empty = lse[0, 0] == -math.inf
    assert empty.tolist() == [True] * 6 + [False] * 2
    assert bool((out[0, empty] == 0).all())
    assert bool((out[0, ~empty] != 0).any())


def test_bf16_error_is_near_the_rounding_of_the_output() -> None:
    q, k, v = tensors((70, 100, 16, 16), (1, 4, 2), dtype=torch.bfloat16)
    selection = Selection.all_visible(BlockGrid(70, 100, 16, 16), 1, 4, q.device)
    out, lse = reference.attend(q, k, v, selection, softmax_scale=0.2)
    exact, exact_lse = reference.attend(q.double(), k.double(), v.double(), selection, softmax_scale=0.2)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    assert float((out.double() - exact.to(torch.bfloat16).double()).abs().max()) <= 2**-8
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-5, atol=1e-5)
