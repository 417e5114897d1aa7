"""Causal block masks for benchmarks, their compact lists, and the FLOPs they stand for.

Owns the mask distribution that every published figure uses. Must not know kernels or peers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.selection import diagonal_blocks, visible_blocks

# Shares of a row's density given to verticals and to slashes each; the random fill tops the row up to the density.
# Source: the peers' figures in docs/performance.md were taken on masks with these shares.
VERTICAL_SHARE = 0.25
SLASH_SHARE = 0.25
CPU = torch.device("cpu")
UNUSED_INDEX = -1  # written behind a row's last block: a kernel that reads it walks out of the sequence and shows


def _first_and_last(grid: BlockGrid, device: torch.device) -> tuple[Tensor, Tensor]:
    """First diagonal and last visible key block of each query block, int64 [num_q_blocks] each."""
    blocks = range(grid.num_q_blocks)
    first = torch.tensor([grid.first_diagonal(i) for i in blocks], device=device)
    return first, torch.tensor([grid.num_visible(i) - 1 for i in blocks], device=device)


def _lookup(chosen: Tensor, size: int, device: torch.device) -> Tensor:
    table = torch.zeros(size, dtype=torch.bool)
    table[chosen] = True
    return table.to(device)


def causal_block_mask(
    grid: BlockGrid, num_heads: int, density: float, *, seed: int = 0, device: torch.device = CPU
) -> Tensor:
    """Sink, local band, per-head verticals and slashes, and a random fill up to `density` of the causal blocks.

    density: share of visible blocks in (0, 1]; short rows come out denser, since sink and diagonal always stay.
    1.0 selects every visible block. Returns [num_heads, num_q_blocks, num_k_blocks] bool on `device`. The same seed
    gives the same verticals and slashes on every device, the random fill is the device's own.
    """
    columns = grid.num_k_blocks
    visible = visible_blocks(grid, device)
    first, last = _first_and_last(grid, device)
    column = torch.arange(columns, device=device)[None, :]
    # The band reaches one query block of tokens back from the diagonal: block i - 1 where blocks are square.
    band_start = (first * grid.block_size_k - grid.block_size_q).clamp(min=0) // grid.block_size_k
    fixed = visible & ((column == 0) | (column >= band_start[:, None]))
    diagonal = diagonal_blocks(grid, device)
    distance = (last[:, None] - column).clamp(min=0)
    shared = torch.Generator().manual_seed(seed)
    filler = torch.Generator(device=device).manual_seed(seed)
    total = visible.sum()
    out = torch.empty(num_heads, grid.num_q_blocks, columns, dtype=torch.bool, device=device)
    for head in range(num_heads):
        verticals = torch.randperm(columns, generator=shared)[: max(1, int(columns * density * VERTICAL_SHARE))]
        slashes = torch.randperm(columns, generator=shared)[: max(1, int(columns * density * SLASH_SHARE))]
        row = fixed | _lookup(verticals, columns, device)[None, :] | _lookup(slashes, columns, device)[distance]
        row &= visible
        missing = (density - row.sum() / total).clamp(min=0)
        fill = torch.rand(row.shape, generator=filler, device=device) < missing
        out[head] = visible if density >= 1.0 else (row | diagonal | (fill & visible))
    return out


def compact(mask: Tensor, *, capacity: int | None = None, unused: int = UNUSED_INDEX) -> tuple[Tensor, Tensor]:
    """Compact lists of a block mask: rising indices and their counts.

    mask: [..., num_q_blocks, num_k_blocks] bool. capacity: width of a row of the lists, num_k_blocks if None.
    Returns (block_indices [..., num_q_blocks, capacity], block_counts [..., num_q_blocks]), int32 on mask's device;
    places behind a row's count hold `unused`.
    Raises: ValueError if a row holds more than `capacity` blocks.
    """
    columns = mask.shape[-1]
    width = columns if capacity is None else capacity
    rows = mask.reshape(-1, mask.shape[-2], columns)
    counts = rows.sum(-1, dtype=torch.int32)
    longest = int(counts.max()) if counts.numel() else 0
    if longest > width:
        raise ValueError(f"capacity is {width}, a row selects {longest} blocks")
    indices = torch.empty(*rows.shape[:2], width, dtype=torch.int32, device=mask.device)
    column = torch.arange(columns, dtype=torch.int32, device=mask.device).expand(rows.shape[1], columns)
    for head in range(rows.shape[0]):  # one head at a time keeps the int64 positions small
        place = torch.where(rows[head], rows[head].cumsum(-1) - 1, width)
        line = torch.full((rows.shape[1], width + 1), unused, dtype=torch.int32, device=mask.device)
        line.scatter_(1, place, column)
        indices[head] = line[:, :width]
    return indices.reshape(*mask.shape[:-1], width), counts.reshape(mask.shape[:-1])


def causal_pairs(grid: BlockGrid, device: torch.device = CPU) -> Tensor:
    """(query, key) pairs that each block counts for: [num_q_blocks, num_k_blocks] float64.

    A block under the diagonal counts block_size_q * block_size_k. A diagonal block counts the area under the line
    key = query + 1/2, so exactly half of a square one, and 3/4 and 1/4 of the two 128 x 64 blocks on a diagonal.
    Blocks out of sight count 0; short tail blocks count their valid tokens only.
    """
    q, k = grid.block_size_q, grid.block_size_k
    row_block = torch.arange(grid.num_q_blocks, device=device)
    widths = (grid.seqlen_k - torch.arange(grid.num_k_blocks, device=device) * k).clamp(max=k)
    heights = (grid.seqlen_q - row_block * q).clamp(max=q)
    pairs = (heights[:, None] * widths[None, :]).double() * visible_blocks(grid, device)
    first, last = _first_and_last(grid, device)
    rows = row_block[:, None] * q + torch.arange(q, device=device)
    valid = rows < grid.seqlen_q
    for step in range(int((last - first).max()) + 1):
        block = first + step
        inside = block <= last
        target = block.clamp(max=grid.num_k_blocks - 1)
        reach = rows + 0.5 + grid.prefix - (target * k)[:, None]
        area = torch.minimum(reach.clamp(min=0), widths[target][:, None]).double().mul(valid).sum(-1)
        pairs[row_block[inside], target[inside]] = area[inside]
    return pairs


def attend_flops(mask: Tensor, grid: BlockGrid, head_dim: int) -> float:
    """FLOPs of attention over the selected blocks: 4 * head_dim for each pair of causal_pairs().

    mask: [..., num_q_blocks, num_k_blocks] bool, leading dims are batch and heads. For square blocks this is
    4 * b * b * head_dim * (selected - diagonal / 2), the count behind every sparse TFLOP/s in docs/performance.md.
    """
    rows = mask.reshape(-1, *mask.shape[-2:])
    return 4.0 * head_dim * float((rows.sum(0).double() * causal_pairs(grid, mask.device)).sum())


def density_of(mask: Tensor, grid: BlockGrid) -> float:
    """Selected blocks / visible blocks of a mask [..., num_q_blocks, num_k_blocks] bool."""
    heads = mask.numel() // (mask.shape[-1] * mask.shape[-2])
    return float(mask.sum()) / (heads * grid.total_visible)
