"""Inputs whose blocks share a few directions, so that few keys matter, as in a real model.

Owns how many and how strong. Must not know kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Of sharpened inputs: found by trial, a tenth to a quarter of the blocks are then selected; of plain normal ones, all.
SHARED_DIRECTIONS, SHARED_GAIN = 20, 0.3


def sharpen(q: Tensor, k: Tensor, block_sizes: tuple[int, int]) -> None:
    """Gives each head's blocks a few common directions, in place, so that few keys matter, as in a real model."""
    draw = torch.Generator(device=q.device).manual_seed(1)
    basis = SHARED_GAIN * torch.randn(SHARED_DIRECTIONS, q.shape[-1], generator=draw, device=q.device)
    for x, size in zip((q, k), block_sizes, strict=True):
        blocks = -(-x.shape[1] // size)
        weights = torch.randn(x.shape[0], blocks, x.shape[2], SHARED_DIRECTIONS, generator=draw, device=x.device)
        x.add_((weights @ basis).to(x.dtype).repeat_interleave(size, 1)[:, : x.shape[1]])
