"""PrismAttention where the q heads of a KV group share one list of blocks, end to end on the reference.

The naive functions are loops over rows, written from method.md alone.
"""

from __future__ import annotations

import math

import msgspec
import pytest
import torch
from torch import Tensor

from prism_gen.errors import TensorError
from prism_gen.model import ModelSpec
from prism_gen.runtime import Output, PrismAttention
from prism_gen.runtime.grid import BlockGrid
from prism_gen.specialize import block_pair_bands

GROUPS, GROUP_SIZE, HEAD_DIM = 3, 3, 64  # of the model fixture
BLOCK_SIZE = (128, 64)
THRESHOLD = 0.3


@pytest.fixture(scope="module")
def shared(model: ModelSpec) -> ModelSpec:
    """The small model with one list for each KV head."""
    return msgspec.structs.replace(model, selection=msgspec.structs.replace(model.selection, share="group"))


def qkv(seqlen_q: int, seqlen_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """float64 inputs, so that the naive computation rounds to the same lists."""
    draw = torch.Generator().manual_seed(5)
    sizes = ((seqlen_q, GROUPS * GROUP_SIZE), (seqlen_k, GROUPS), (seqlen_k, GROUPS))
    q, k, v = (torch.randn(1, *size, HEAD_DIM, generator=draw, dtype=torch.float64) for size in sizes)
    return q, k, v


def block_means(x: Tensor, size: int) -> Tensor:
    """[tokens, head_dim] -> [num_blocks, head_dim]."""
    return torch.stack([part.mean(0) for part in x.split(size)])


def naive_probs(q: Tensor, k: Tensor, dims: list[int], grid: BlockGrid) -> Tensor:
    """One band of one head, [num_q_blocks, num_k_blocks]. Source: method.md steps 1, 3 and 4."""
    q_mean, k_mean = block_means(q, grid.block_size_q), block_means(k, grid.block_size_k)
    tau = math.sqrt(len(dims) / HEAD_DIM)
    for mean in (q_mean, k_mean):
        tau *= math.sqrt(float((mean[:, dims] ** 2).mean()) / float((mean**2).mean()))
    probs = torch.zeros(grid.num_q_blocks, grid.num_k_blocks, dtype=torch.float64)
    for i in range(grid.num_q_blocks):
        seen = grid.num_visible(i)
        logits = k_mean[:seen, dims] @ q_mean[i, dims] / (math.sqrt(len(dims)) * tau)
        probs[i, :seen] = logits.softmax(0)
    return probs


def naive_list(row: Tensor, threshold: float) -> set[int]:
    """The shortest prefix in falling order that reaches the threshold. Source: method.md step 5."""
    kept: set[int] = set()
    total = 0.0
    for block in sorted(range(len(row)), key=lambda j: (-float(row[j]), j)):
        if total >= threshold:
            break
        kept.add(block)
        total += float(row[block])
    return kept


def naive_mask(model: ModelSpec, q: Tensor, k: Tensor, grid: BlockGrid, thresholds: list[float]) -> Tensor:
    """Bool [GROUPS, num_q_blocks, num_k_blocks] of batch 0: the group's maximum, renormalised, cut for each band."""
    bands = block_pair_bands(model, (grid.block_size_q, grid.block_size_k))
    mask = torch.zeros(GROUPS, grid.num_q_blocks, grid.num_k_blocks, dtype=torch.bool)
    mask[:, :, 0] = True
    for g in range(GROUPS):
        for dims in (list(bands.high_dims), list(bands.low_dims)):
            heads = range(g * GROUP_SIZE, (g + 1) * GROUP_SIZE)
            strongest = torch.stack([naive_probs(q[0, :, h], k[0, :, g], dims, grid) for h in heads]).amax(0)
            for i in range(grid.num_q_blocks):
                seen = grid.num_visible(i)
                row = strongest[i, :seen] / strongest[i, :seen].sum()
                mask[g, i, list(naive_list(row, thresholds[g]))] = True
                mask[g, i, grid.first_diagonal(i) : seen] = True
    return mask


def dense(q: Tensor, k: Tensor, v: Tensor, block_mask: Tensor | None, grid: BlockGrid) -> Tensor:
    """Causal attention, bottom-right; block_mask: bool [GROUPS, num_q_blocks, num_k_blocks], None for every block."""
    tokens = torch.arange(grid.seqlen_k) <= torch.arange(grid.seqlen_q)[:, None] + grid.prefix
    keep = tokens.expand(GROUPS, -1, -1)
    if block_mask is not None:
        wide = block_mask.repeat_interleave(grid.block_size_q, 1).repeat_interleave(grid.block_size_k, 2)
        keep = keep & wide[:, : grid.seqlen_q, : grid.seqlen_k]
    out = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), attn_mask=keep.repeat_interleave(GROUP_SIZE, 0), enable_gqa=True
    )
    return out.transpose(1, 2)


@pytest.mark.parametrize("seqlens", [(300, 300), (200, 777)], ids=str)
def test_all_blocks_selected_is_dense_attention(shared: ModelSpec, seqlens: tuple[int, int]) -> None:
    q, k, v = qkv(*seqlens)
    attention = PrismAttention(
        None, shared, backend="reference", block_size=BLOCK_SIZE, high_threshold=1.0, low_threshold=1.0
    )
    result = attention(q, k, v, return_lse=True, return_stats=True)
    assert isinstance(result, Output)
    assert result.stats is not None
    assert result.stats.counts.shape == (1, GROUPS, BlockGrid(*seqlens, *BLOCK_SIZE).num_q_blocks)
    assert bool((result.stats.density == 1).all())
    torch.testing.assert_close(result.out, dense(q, k, v, None, attention.grid(q, k)))


@pytest.mark.parametrize("thresholds", [[THRESHOLD] * 3, [0.1, 0.3, 0.5]], ids=["one", "per-list"])
def test_a_group_attends_to_the_blocks_of_its_own_list(shared: ModelSpec, thresholds: list[float]) -> None:
    q, k, v = qkv(300, 900)
    attention = PrismAttention(
        None, shared, backend="reference", block_size=BLOCK_SIZE, high_threshold=thresholds, low_threshold=thresholds
    )
    grid = attention.grid(q, k)
    mask = naive_mask(shared, q, k, grid, thresholds)
    assert 0.3 < float(mask.sum()) / (GROUPS * grid.total_visible) < 0.9
    assert attention.select(attention.pool(q, k)).block_mask()[0].equal(mask)
    torch.testing.assert_close(attention(q, k, v), dense(q, k, v, mask, grid))


def test_a_shard_of_the_groups_computes_what_the_whole_model_does(shared: ModelSpec) -> None:
    q, k, v = qkv(300, 900)
    attention = PrismAttention(
        None, shared, backend="reference", block_size=BLOCK_SIZE, high_threshold=THRESHOLD, low_threshold=THRESHOLD
    )
    whole = attention(q, k, v)
    for g in range(GROUPS):
        mine = slice(g * GROUP_SIZE, (g + 1) * GROUP_SIZE)
        assert attention(q[:, :, mine], k[:, :, g : g + 1], v[:, :, g : g + 1]).equal(whole[:, :, mine])


def test_thresholds_per_q_head_are_refused(shared: ModelSpec) -> None:
    with pytest.raises(TensorError, match=r"high_threshold has 9 values[\s\S]*one per list of blocks \(3\)"):
        PrismAttention(None, shared, backend="reference", high_threshold=[0.9] * 9)
