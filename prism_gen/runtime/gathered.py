"""Block-sparse attention on a CPU: rows of equal length gathered and given to torch's own attention together.

Owns that arrangement, for models run whole in plain torch; many times faster there than reference.py, whose attend says
what is meant. Gives no lse.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from prism_gen.runtime.selection import Selection

MOST_GATHERED = 1 << 23  # elements of k gathered at once: 32 MB of fp32, about what a cache holds


def gathered_attention(q: Tensor, k: Tensor, v: Tensor, selection: Selection, *, softmax_scale: float) -> Tensor:
    """attend's out. q: [batch, seqlen_q, num_q_heads, head_dim], k, v: [batch, seqlen_k, num_kv_heads, head_dim].

    Every row must have a visible selected key, as forced diagonal blocks see to.
    """
    grid, (batch, seqlen_q, num_q_heads, head_dim) = selection.grid, q.shape
    heads_per_list, group_size = num_q_heads // selection.block_counts.shape[1], num_q_heads // k.shape[2]
    missing = grid.num_q_blocks * grid.block_size_q - seqlen_q
    q_blocks = F.pad(q.transpose(1, 2), (0, 0, 0, missing)).reshape(-1, grid.block_size_q, head_dim)
    missing = grid.num_k_blocks * grid.block_size_k - grid.seqlen_k
    k_blocks, v_blocks = (
        F.pad(x.transpose(1, 2), (0, 0, 0, missing)).reshape(-1, grid.block_size_k, head_dim) for x in (k, v)
    )
    indices = selection.block_indices.repeat_interleave(heads_per_list, dim=1).flatten(0, 2).long()
    counts = selection.block_counts.repeat_interleave(heads_per_list, dim=1).flatten()
    rows = torch.arange(len(counts), device=q.device)
    kv_head = rows // (grid.num_q_blocks * group_size)  # heads of a group are neighbours, batch before them
    boundary = rows[:, None] % grid.num_q_blocks * grid.block_size_q + torch.arange(grid.block_size_q) + grid.prefix
    boundary = boundary.clamp_max(grid.seqlen_k - 1)  # rows of padding see what the last row sees
    crossing = min(-(-grid.block_size_q // grid.block_size_k) + 1, grid.num_k_blocks)  # the last of a row
    out = torch.empty_like(q_blocks)
    for count in range(1, int(counts.max()) + 1):
        width, tail = count * grid.block_size_k, min(crossing, count)
        for some in torch.split(rows[counts == count], max(1, MOST_GATHERED // (width * head_dim))):
            if len(some) == 0:
                continue
            chosen = indices[some, :count]
            keys = (chosen[:, -tail:, None] * grid.block_size_k + torch.arange(grid.block_size_k)).flatten(1)
            bias = q.new_zeros(len(some), 1, grid.block_size_q, width)
            bias[:, 0, :, -tail * grid.block_size_k :].masked_fill_(keys[:, None] > boundary[some, :, None], -math.inf)
            places = chosen + kv_head[some, None] * grid.num_k_blocks
            k_rows, v_rows = (x[places].flatten(1, 2)[:, None] for x in (k_blocks, v_blocks))
            attended = F.scaled_dot_product_attention(
                q_blocks[some, None], k_rows, v_rows, attn_mask=bias, scale=softmax_scale
            )
            out[some] = attended[:, 0]
    return out.reshape(batch, num_q_heads, -1, head_dim)[:, :, :seqlen_q].transpose(1, 2)
