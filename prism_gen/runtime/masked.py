"""Dense attention in plain torch, whole or under a mask of blocks: slow in theory, fast on a GPU, and it sees all mass.

Owns that arithmetic, in fp32. Judged by the same definition as the kernels (method.md step 6); the CPU takes
runtime/reference.py, which reads only the selected blocks.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from prism_gen.runtime.selection import Selection

SLAB_ROWS = 2048  # queries at once: their scores on 8192 keys are 64 MB a head


class Masked(NamedTuple):
    """out: like q. lse, dense_lse: fp32 [batch, num_q_heads, seqlen_q], of the selected keys and of all visible."""

    out: Tensor
    lse: Tensor
    dense_lse: Tensor


def dense_attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float) -> Tensor:
    """Causal attention to every key, with gradients.

    q, k, v: as for masked_attention, any float dtype; seqlen_q == seqlen_k.
    """
    group_size = q.shape[2] // k.shape[2]  # repeated heads keep torch's memory-efficient kernels in reach
    k, v = (x.repeat_interleave(group_size, dim=2) for x in (k, v))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=softmax_scale).transpose(1, 2)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, selection: Selection, *, softmax_scale: float) -> Masked:
    """attend's result, and the log-sum-exp that dense attention would have.

    q: [batch, seqlen_q, num_q_heads, head_dim], k, v: [batch, seqlen_k, num_kv_heads, head_dim], fp32.
    """
    grid, block_mask = selection.grid, selection.block_mask()
    batch, seqlen_q, num_q_heads, _ = q.shape
    group_size = num_q_heads // k.shape[2]
    masks = block_mask.repeat_interleave(num_q_heads // block_mask.shape[1], dim=1)
    out = torch.empty_like(q)
    lse, dense_lse = (torch.empty(batch, num_q_heads, seqlen_q, dtype=q.dtype, device=q.device) for _ in range(2))
    columns = torch.arange(grid.seqlen_k, device=q.device)
    for b in range(batch):
        for kv_head in range(k.shape[2]):
            heads = slice(kv_head * group_size, (kv_head + 1) * group_size)
            for start in range(0, seqlen_q, SLAB_ROWS):
                rows = slice(start, min(start + SLAB_ROWS, seqlen_q))
                end = rows.stop + grid.prefix  # keys that the last row sees
                scores = q[b, rows, heads].transpose(0, 1) @ k[b, :end, kv_head].T * softmax_scale
                boundary = torch.arange(rows.start, rows.stop, device=q.device)[:, None] + grid.prefix
                scores.masked_fill_(columns[:end] > boundary, -math.inf)
                dense_lse[b, heads, rows] = scores.logsumexp(-1)
                of_rows = torch.arange(rows.start, rows.stop, device=q.device) // grid.block_size_q
                chosen = masks[b, heads][:, of_rows][:, :, columns[:end] // grid.block_size_k]
                scores.masked_fill_(~chosen, -math.inf)
                top = scores.logsumexp(-1, keepdim=True)
                lse[b, heads, rows] = top.squeeze(-1)
                weights = (scores - top.clamp_min(torch.finfo(q.dtype).min)).exp()  # zeros in a row without a key
                out[b, rows, heads] = (weights @ v[b, :end, kv_head]).transpose(0, 1)
    return Masked(out, lse, dense_lse)
