"""Plain-torch rotate: RoPE of q or k as transformers applies it, rounding by rounding.

Owns the arithmetic of method.md step 0. Must not make tables of cos and sin: the model's own code does.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """Rotates the first dims of every token and head, in x's own dtype.

    x: [batch, num_tokens, num_heads, head_dim] before RoPE. cos, sin: [batch or 1, num_tokens, rotary_dim / 2] in x's
    dtype, one value a pair. Pair p is dims (2p, 2p + 1) where interleaved, else (p, p + rotary_dim / 2); dims from
    rotary_dim on are copied.
    Rounding: both products and their sum are rounded to the dtype, as x * cos + rotate_half(x) * sin does in torch.
    Source: transformers v5, apply_rotary_pos_emb of modeling_llama and modeling_glm.
    """
    rotary_dim = 2 * cos.shape[-1]
    turned = x[..., :rotary_dim]
    first, second = (turned[..., ::2], turned[..., 1::2]) if interleaved else turned.chunk(2, dim=-1)
    c, s = cos[:, :, None], sin[:, :, None]
    parts = [first * c - second * s, second * c + first * s]
    rotated = torch.stack(parts, dim=-1).flatten(-2) if interleaved else torch.cat(parts, dim=-1)
    return torch.cat([rotated, x[..., rotary_dim:]], dim=-1)
