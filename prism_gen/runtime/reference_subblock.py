"""The subblock estimator in plain torch: key blocks scored by attention among the means of sub-blocks.

Owns its meaning (method.md, The subblock estimator), from sub-block means to the masses of the cut.
Must not pool (reference_pool.py does, at sub-block size) or cut (reference_cut.py does).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from prism_gen.model import Share
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.reference_cut import FIXED_ONE, forced_blocks, select_from_fixed, to_fixed
from prism_gen.runtime.rules import PAPER_RULES, SelectRules
from prism_gen.runtime.selection import Selection
from prism_gen.sub_blocks import SubBlocks

MOST_SCORES = 1 << 25  # sub-block scores held at once, 128 MB of fp32: enough to be fast, small beside a model
LEAST_REST = 1 / FIXED_ONE  # a smaller sum of probabilities has no mass


def block_scores(
    q_mean: Tensor, k_mean: Tensor, *, sub_blocks: SubBlocks, grid: BlockGrid, softmax_scale: float, share: Share
) -> Tensor:
    """The mass of each key block as the sub-rows of a query block see it, reduced over them; rows do not sum to 1.

    q_mean: [batch, num_q_heads, sub-rows, head_dim], k_mean: [batch, num_kv_heads, sub-columns, head_dim], means of
    sub-blocks as pool returns them. share "group" reduces over the q heads of a group too.
    A sub-row sees every sub-column whose first token its last row sees.
    Returns [batch, num_lists, num_q_blocks, num_k_blocks] in the means' dtype; 0 where not visible.
    """
    batch, num_q_heads, _, head_dim = q_mean.shape
    num_kv_heads = k_mean.shape[1]
    heads = num_q_heads // num_kv_heads if share == "group" else 1  # q heads of one list
    grouped = q_mean.reshape(batch, num_kv_heads, num_q_heads // num_kv_heads, -1, head_dim)
    rows = grid.block_size_q // sub_blocks.q  # of a query block
    visible = _visible_columns(grid, sub_blocks, q_mean.device)
    scores = q_mean.new_zeros(batch, num_q_heads // heads, grid.num_q_blocks, grid.num_k_blocks)
    per_block = batch * num_q_heads * rows * k_mean.shape[2]
    slab = max(1, MOST_SCORES // per_block)  # query blocks at once
    for first in range(0, grid.num_q_blocks, slab):
        last = min(first + slab, grid.num_q_blocks)
        sub_rows = slice(first * rows, last * rows)
        mass = _block_mass(grouped[:, :, :, sub_rows], k_mean, visible[sub_rows], softmax_scale, grid, sub_blocks)
        num_rows = mass.new_full((last - first, 1), rows)  # of each query block, the last may have fewer
        num_rows[-1] = mass.shape[-2] - rows * (last - first - 1)
        mass = F.pad(
            mass, (0, 0, 0, rows * (last - first) - mass.shape[-2])
        )  # no mass: neither maximum nor sum changes
        mass = mass.reshape(batch, num_q_heads // heads, heads, last - first, rows, -1)
        reduced = mass.amax((2, 4)) if sub_blocks.reduce == "max" else mass.sum((2, 4)) / (heads * num_rows)
        scores[:, :, first:last] = reduced
    return scores


def block_probs(scores: Tensor, *, sub_blocks: SubBlocks, grid: BlockGrid, rules: SelectRules) -> Tensor:
    """One distribution over the key blocks of each row: scores divided by their sum.

    With exclude_forced, forced blocks get 0 and the others are divided by their own sum, unless that is below 2**-30 of
    the row's: then there is nothing to choose, and the forced blocks keep what they have.
    Returns [batch, num_lists, 1, num_q_blocks, num_k_blocks]: one band where the paper has two.
    """
    probs = scores / scores.sum(-1, keepdim=True)
    if sub_blocks.exclude_forced:
        free = probs.masked_fill(forced_blocks(grid, rules, probs.device), 0.0)
        rest = free.sum(-1, keepdim=True)
        probs = torch.where(rest < LEAST_REST, probs, free / rest)
    return probs[:, :, None]


def select(
    q_mean: Tensor,
    k_mean: Tensor,
    thresholds: Tensor,
    *,
    sub_blocks: SubBlocks,
    grid: BlockGrid,
    softmax_scale: float,
    rules: SelectRules = PAPER_RULES,
) -> Selection:
    """block_scores, block_probs and the cut in one; the result carries the masses.

    thresholds: fp32 [num_lists, 1]. Raises: TensorError as select_from_fixed does.
    """
    scores = block_scores(
        q_mean, k_mean, sub_blocks=sub_blocks, grid=grid, softmax_scale=softmax_scale, share=rules.share
    )
    probs = block_probs(scores, sub_blocks=sub_blocks, grid=grid, rules=rules)
    return select_from_fixed(to_fixed(probs), thresholds, grid, rules)


def _visible_columns(grid: BlockGrid, sub_blocks: SubBlocks, device: torch.device) -> Tensor:
    """Number of sub-columns that each sub-row sees, [sub-rows, 1]."""
    fine = BlockGrid(grid.seqlen_q, grid.seqlen_k, sub_blocks.q, sub_blocks.k)
    return torch.tensor([[fine.num_visible(row)] for row in range(fine.num_q_blocks)], device=device)


def _block_mass(
    q_mean: Tensor, k_mean: Tensor, visible: Tensor, softmax_scale: float, grid: BlockGrid, sub_blocks: SubBlocks
) -> Tensor:
    """Each sub-row's softmax over the sub-columns it sees, summed by key block.

    q_mean: [batch, num_kv_heads, group_size, rows, head_dim]; visible: [rows, 1]. Returns [batch, num_kv_heads,
    group_size, rows, num_k_blocks].
    """
    columns = k_mean.shape[2]
    logits = (q_mean @ k_mean[:, :, None].transpose(-1, -2)).mul_(softmax_scale)
    logits.masked_fill_(torch.arange(columns, device=visible.device) >= visible, -math.inf)
    per_block = grid.block_size_k // sub_blocks.k
    padded = F.pad(logits.softmax(-1), (0, grid.num_k_blocks * per_block - columns))
    return padded.reshape(*padded.shape[:-1], grid.num_k_blocks, per_block).sum(-1)
