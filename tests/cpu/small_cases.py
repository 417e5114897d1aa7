"""Ragged and tiny shapes for the reference, and seeded tensors of them.

Owns cases that several tests of the reference share. Must not judge.
"""

from __future__ import annotations

import torch
from torch import Tensor

Shape = tuple[int, int, int, int]
Heads = tuple[int, int, int]  # batch, num_q_heads, num_kv_heads

# (seqlen_q, seqlen_k, block_size_q, block_size_k)
SHAPES = [
    (1, 1, 8, 8),
    (5, 5, 8, 8),
    (8, 8, 8, 8),
    (33, 33, 16, 8),
    (1, 40, 8, 8),
    (17, 50, 8, 8),
    (40, 61, 16, 8),
    (64, 96, 16, 16),
]
HEADS = [(2, 4, 2), (1, 3, 1), (1, 2, 2)]


def tensors(
    shape: Shape, heads: Heads, *, dim: int = 32, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """q [batch, seqlen_q, num_q_heads, dim], k and v [batch, seqlen_k, num_kv_heads, dim], standard normal."""
    batch, num_q, num_kv = heads
    torch.manual_seed(sum(shape) * 31 + sum(heads))
    q = torch.randn(batch, shape[0], num_q, dim, dtype=torch.float64)
    k = torch.randn(batch, shape[1], num_kv, dim, dtype=torch.float64)
    v = torch.randn(batch, shape[1], num_kv, dim, dtype=torch.float64)
    return q.to(dtype), k.to(dtype), v.to(dtype)
