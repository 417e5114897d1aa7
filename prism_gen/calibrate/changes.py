"""What dropping blocks changes of an attention output, along a given direction, for many selections at once.

Owns that arithmetic. With p dense attention's probabilities, a row's output on a selection is the sum of p v over its
blocks divided by that of p. So the sums by block of p and of p (v.g) serve every selection, and no output is formed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.selection import Selection

SLAB_ROWS = 2048  # queries at once: their scores on 8192 keys are 64 MB a head


def directional_changes(
    q: Tensor, k: Tensor, v: Tensor, direction: Tensor, selections: Sequence[Selection], *, softmax_scale: float
) -> Tensor:
    """(out of each selection - dense out) . direction, fp32 [num_q_heads, selections, seqlen_q].

    q, k, v: one sequence, [1, tokens, heads, head_dim]. direction: [seqlen_q, num_q_heads, head_dim]. selections: one
    grid's. A row of which a selection holds no mass gives out 0 there.
    """
    grid, num_q_heads = selections[0].grid, q.shape[2]
    masks = torch.stack([selection.block_mask()[0].float() for selection in selections], dim=-1)
    masks = masks.repeat_interleave(num_q_heads // masks.shape[0], dim=0)  # [heads, q blocks, k blocks, selections]
    group_size = num_q_heads // k.shape[2]
    changes = torch.empty(num_q_heads, len(selections), grid.seqlen_q, device=q.device)
    slab = max(1, SLAB_ROWS // grid.block_size_q)
    for kv_head in range(k.shape[2]):
        heads = slice(kv_head * group_size, (kv_head + 1) * group_size)
        for first in range(0, grid.num_q_blocks, slab):
            last = min(first + slab, grid.num_q_blocks)
            rows, seen = slice(first * grid.block_size_q, last * grid.block_size_q), grid.num_visible(last - 1)
            mass, along = _sums_by_block(
                q[0, rows, heads],
                k[0, :, kv_head],
                v[0, :, kv_head],
                direction[rows, heads],
                rows.start,
                seen,
                grid,
                softmax_scale=softmax_scale,
            )
            chosen, num_rows = masks[heads, first:last, :seen], mass.shape[1]
            missing = (last - first) * grid.block_size_q - num_rows
            kept_mass, kept_along = (
                (F.pad(x, (0, 0, 0, missing)).reshape(group_size, last - first, -1, seen) @ chosen).flatten(1, 2)
                for x in (mass, along)
            )
            kept = torch.where(kept_mass > 0, kept_along / kept_mass, 0.0)[:, :num_rows]
            changes[heads, :, rows] = (kept - along.sum(-1, keepdim=True)).transpose(1, 2)
    return changes


def _sums_by_block(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    direction: Tensor,
    first_row: int,
    seen: int,
    grid: BlockGrid,
    *,
    softmax_scale: float,
) -> tuple[Tensor, Tensor]:
    """Sums by key block of dense attention's p, and of p (v.direction): both [heads, rows, seen] fp32.

    q, direction: [rows, heads, head_dim], from row first_row; k, v: [seqlen_k, head_dim]; seen: key blocks.
    """
    columns = seen * grid.block_size_k
    k, v = (F.pad(x.float(), (0, 0, 0, max(0, columns - grid.seqlen_k)))[:columns] for x in (k, v))
    boundary = torch.arange(first_row, first_row + len(q), device=q.device)[:, None] + grid.prefix
    scores = (q.float().transpose(0, 1) @ k.T).mul_(softmax_scale)
    scores.masked_fill_(torch.arange(columns, device=q.device) > boundary, -math.inf)
    probs = scores.softmax(-1)
    along = probs * (direction.float().transpose(0, 1) @ v.T)
    mass, summed = (x.reshape(*x.shape[:2], seen, grid.block_size_k).sum(-1) for x in (probs, along))
    return mass, summed
