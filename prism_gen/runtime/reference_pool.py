"""Plain-torch pool: block means and their energies, in one go or chunk by chunk, with the same bits either way.

Owns the order in which tokens are summed (method.md step 1) and what is kept of a block that is not complete. Must not
import kernels.

The order: a block is cut into granules of 32 tokens; a granule's tokens are added one by one, then the granules one by
one. A token's place in its block fixes when it is added, so a chunk boundary, a launch or a batch cannot change a bit.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from prism_gen.rope import Bands

GRANULE_TOKENS = 32  # templates/pool/params.h: what one thread of the kernel sums


class PooledChunk(NamedTuple):
    """What pooling the tokens start .. start + num_tokens - 1 of a sequence gives.

    mean: [batch, num_heads, num_blocks, head_dim], energy: [batch, num_heads, num_blocks, 3], of the blocks that hold
    one of these tokens, over all their tokens so far. tail: [batch, num_heads, granules, head_dim], the granule sums of
    the last of them, with which the next chunk goes on where it is not complete.
    """

    mean: Tensor
    energy: Tensor
    tail: Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """fp32 for 16-bit inputs, otherwise the input's own dtype."""
    return torch.float32 if x.element_size() < 4 else x.dtype


def band_lists(bands: Bands) -> tuple[list[int], list[int]]:
    """Dims of the high band and of the low band, in the order of every array with a band axis."""
    return list(bands.high_dims), list(bands.low_dims)


def granules_per_block(block_size: int) -> int:
    """Granules in a block of block_size tokens: of 32 tokens, or of the largest divisor that 32 has in common."""
    return block_size // math.gcd(block_size, GRANULE_TOKENS)


def pool(x: Tensor, block_size: int, bands: Bands | None) -> tuple[Tensor, Tensor]:
    """Mean of each token block, and the energy of each mean.

    x: [batch, seqlen, num_heads, head_dim], any strides. block_size: tokens.
    Returns, in the compute dtype, mean [batch, num_heads, num_blocks, head_dim] and energy [batch, num_heads,
    num_blocks, 3]: the sum of mean**2 over the dims of the high band, of the low band, of all; [..., 0] without bands.
    Tail: a short last block divides by its valid tokens.
    Source: method.md steps 1 and 3.
    """
    mean, energy, _ = pool_chunk(x, block_size, bands)
    return mean, energy


def pool_chunk(
    x: Tensor, block_size: int, bands: Bands | None, *, start: int = 0, tail: Tensor | None = None
) -> PooledChunk:
    """pool of a chunk whose first token is token `start` of its sequence.

    x: [batch, num_tokens >= 1, num_heads, head_dim]. tail: what the chunk before left, needed where start is inside a
    block. Blocks that end up complete, or the same tokens short, have the bits that one call on the whole sequence
    gives, except that a subnormal sum may differ on the GPU.
    """
    batch, num_tokens, num_heads, head_dim = x.shape
    skipped, granules = start % block_size, granules_per_block(block_size)
    num_blocks = -(-(skipped + num_tokens) // block_size)
    missing = num_blocks * block_size - skipped - num_tokens
    tokens = F.pad(x.to(compute_dtype(x)).movedim(1, 2), (0, 0, skipped, missing))
    grouped = tokens.reshape(batch, num_heads, num_blocks, granules, block_size // granules, head_dim)
    sums = grouped.new_zeros(batch, num_heads, num_blocks, granules, head_dim)
    if skipped:
        if tail is None:
            raise ValueError(f"a chunk from token {start} continues a block of {block_size} tokens: tail is needed")
        sums[:, :, 0] = tail
    for token in range(grouped.shape[4]):
        sums += grouped[:, :, :, :, token]  # absent tokens are zeros, which change no bit of a sum that began at +0
    total = torch.zeros_like(sums[:, :, :, 0])
    for granule in range(granules):
        total += sums[:, :, :, granule]
    valid = torch.full((num_blocks, 1), float(block_size), dtype=total.dtype, device=x.device)
    valid[-1] = block_size - missing
    mean = total / valid
    energy = mean.new_zeros(*mean.shape[:-1], 0) if bands is None else energies(mean, bands)
    return PooledChunk(mean, energy, sums[:, :, -1])


def energies(mean: Tensor, bands: Bands) -> Tensor:
    """The sum of mean**2 over the dims of the high band, the low band, all: [..., head_dim] -> [..., 3]."""
    square = mean * mean
    by_band = [square[..., dims].sum(-1) for dims in band_lists(bands)]
    return torch.stack([*by_band, square.sum(-1)], dim=-1)
