"""The subblock estimator in plain torch: key blocks scored by attention among the means of sub-blocks.

Owns its meaning (method.md, The subblock estimator), from sub-block means to the fixed-point probabilities of the cut.
Must not pool (reference_pool.py does, at sub-block size) or cut (reference_cut.py does). Never holds scores of more
than one query block of all heads.
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

LEAST_REST = 1 / FIXED_ONE  # a smaller sum of probabilities rounds to nothing in fixed point


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
    fine = BlockGrid(grid.seqlen_q, grid.seqlen_k, sub_blocks.q, sub_blocks.k)
    rows_per_block, columns_per_block = grid.block_size_q // sub_blocks.q, grid.block_size_k // sub_blocks.k
    seen_by_row = torch.tensor([fine.num_visible(row) for row in range(fine.num_q_blocks)], device=q_mean.device)
    scores = q_mean.new_zeros(batch, num_q_heads // heads, grid.num_q_blocks, grid.num_k_blocks)
    for i in range(grid.num_q_blocks):
        rows = range(i * rows_per_block, min((i + 1) * rows_per_block, fine.num_q_blocks))
        seen = grid.num_visible(i)
        columns = min(seen * columns_per_block, fine.num_k_blocks)
        logits = grouped[:, :, :, rows.start : rows.stop] @ k_mean[:, :, None, :columns].transpose(-1, -2)
        hidden = torch.arange(columns, device=q_mean.device) >= seen_by_row[rows.start : rows.stop, None]
        mass = (logits * softmax_scale).masked_fill_(hidden, -math.inf).softmax(-1)
        mass = F.pad(mass, (0, seen * columns_per_block - columns))
        of_list = mass.reshape(batch, num_q_heads // heads, heads * len(rows), seen, columns_per_block).sum(-1)
        scores[:, :, i, :seen] = of_list.amax(2) if sub_blocks.reduce == "max" else of_list.mean(2)
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
    """block_scores, block_probs and the cut in one; the result carries the fixed-point probabilities.

    thresholds: fp32 [num_lists, 1]. Raises: TensorError as select_from_fixed does.
    """
    scores = block_scores(
        q_mean, k_mean, sub_blocks=sub_blocks, grid=grid, softmax_scale=softmax_scale, share=rules.share
    )
    probs = block_probs(scores, sub_blocks=sub_blocks, grid=grid, rules=rules)
    return select_from_fixed(to_fixed(probs), thresholds, grid, rules)
