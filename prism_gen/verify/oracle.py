"""Exact answers in float64, torch's own 16-bit error, and what "within rounding of a cut-off" means.

Owns the measure that kernels are judged by, written apart from prism_gen.runtime.reference on purpose. Must not launch
kernels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.selection import visible_blocks

# A kernel's error may be twice torch's own on the same inputs, plus a floor for rows where torch happens to be exact.
ERROR_FACTOR = 2.0
ERROR_FLOOR = 1e-5
# fp32 scores of magnitude 20 carry 2e-6 each, which moves a cumulative sum of probabilities by at most about 2e-5.
CUT_EPS = 5e-5


def token_mask(block_mask: Tensor, grid: BlockGrid) -> Tensor:
    """Keys each query attends to: block_mask [..., num_q_blocks, num_k_blocks] -> bool [..., seqlen_q, seqlen_k]."""
    rows = block_mask.repeat_interleave(grid.block_size_q, -2)[..., : grid.seqlen_q, :]
    mask = rows.repeat_interleave(grid.block_size_k, -1)[..., : grid.seqlen_k]
    query = torch.arange(grid.seqlen_q, device=mask.device)[:, None] + grid.prefix
    return mask & (torch.arange(grid.seqlen_k, device=mask.device) <= query)


def causal_mask(grid: BlockGrid, device: torch.device) -> Tensor:
    """Keys each query sees in dense causal attention, bool [seqlen_q, seqlen_k]."""
    return torch.ones(grid.seqlen_q, grid.seqlen_k, dtype=torch.bool, device=device).tril(grid.prefix)


def _heads_first(x: Tensor, group_size: int) -> Tensor:
    return x.transpose(1, 2).repeat_interleave(group_size, 1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, softmax_scale: float) -> tuple[Tensor, Tensor]:
    """Masked softmax attention in float64.

    q [batch, seqlen_q, num_q_heads, head_dim], k, v [batch, seqlen_k, num_kv_heads, head_dim], mask bool
    [batch, num_q_heads, seqlen_q, seqlen_k]. Returns out like q and lse [batch, num_q_heads, seqlen_q], float64;
    a query without keys gets 0 and -inf.
    """
    group_size = q.shape[2] // k.shape[2]
    scores = q.double().transpose(1, 2) @ _heads_first(k.double(), group_size).transpose(-1, -2) * softmax_scale
    scores = scores.masked_fill(~mask, -math.inf)
    lse = scores.logsumexp(-1)
    weights = scores.softmax(-1).nan_to_num(0.0)
    return (weights @ _heads_first(v.double(), group_size)).transpose(1, 2), lse


def torch_attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, softmax_scale: float) -> Tensor:
    """The same through torch's own scaled_dot_product_attention in the inputs' dtype; queries without keys get 0."""
    group_size = q.shape[2] // k.shape[2]
    k_heads, v_heads = _heads_first(k, group_size), _heads_first(v, group_size)
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k_heads, v_heads, attn_mask=mask, scale=softmax_scale)
    return out.masked_fill(~mask.any(-1, keepdim=True), 0.0).transpose(1, 2)


def max_abs(x: Tensor) -> float:
    """Largest magnitude, infinite if any value is NaN; 0 for an empty tensor."""
    return float(x.abs().nan_to_num(math.inf).max()) if x.numel() else 0.0


def error_limit(torch_error: float) -> float:
    """Largest absolute error that a kernel may show where torch shows `torch_error`."""
    return ERROR_FACTOR * torch_error + ERROR_FLOOR


def rows_off_the_cut(
    chosen: Tensor, exact_probs: Tensor, thresholds: Tensor, grid: BlockGrid, *, eps: float = CUT_EPS
) -> Tensor:
    """Rows of one band's choice that rounding of a cut-off cannot explain.

    chosen bool and exact_probs float64 [..., num_lists, bands, num_q_blocks, num_k_blocks]; thresholds [num_lists,
    bands]. A choice is explained when, up to eps, it holds the strongest blocks, reaches the threshold, and would miss
    it without its weakest block. Returns bool [..., num_lists, bands, num_q_blocks].
    """
    visible = visible_blocks(grid, chosen.device)
    limit = thresholds.double()[..., None]
    mass = (exact_probs * chosen).sum(-1)
    weakest = exact_probs.masked_fill(~chosen, math.inf).amin(-1)
    strongest_left = exact_probs.masked_fill(chosen | ~visible, -math.inf).amax(-1)
    all_kept = ~(visible & ~chosen).any(-1)
    reaches = all_kept | (mass >= limit - eps)
    needed = (limit >= 1.0) | (mass - weakest < limit + eps)
    ordered = weakest >= strongest_left - eps
    hidden_chosen = (chosen & ~visible).any(-1)
    return hidden_chosen | ~(reaches & needed & ordered)
