"""The cases of the numerics, select, graph and sanitizer sections: shapes, layouts, masks and the random inputs.

Owns which shapes are tried. Must not judge answers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.selection import diagonal_blocks, visible_blocks
from prism_gen.verify.buffers import LAYOUTS, Layout, poisoned_qkv
from prism_gen.verify.masks import causal_block_mask

MaskKind = Literal["sparse", "all", "scattered", "empty", "diagonal"]
SCATTERED_DENSITY = 0.35  # low enough that short rows come out empty or without their diagonal block
SPARSE_DENSITY = 0.25


@dataclass(frozen=True)
class Case:
    """One problem. Lengths in tokens. gain: multiplies q, so that larger values make sharper rows."""

    seqlen_q: int
    seqlen_k: int
    num_q_heads: int = 4
    num_kv_heads: int = 2
    batch: int = 1
    layout: Layout = "contiguous"
    mask: MaskKind = "sparse"
    lse: bool = True
    gain: float = 1.0

    def __str__(self) -> str:
        heads = f"h{self.num_q_heads}:{self.num_kv_heads}"
        tail = "" if self.lse else "-nolse"
        gain = "" if self.gain == 1.0 else f"-gain{self.gain:g}"
        return f"q{self.seqlen_q}k{self.seqlen_k}-b{self.batch}-{heads}-{self.layout}-{self.mask}{gain}{tail}"

    def shared_by(self, heads_per_list: int) -> Case:
        """This case with groups of that many q heads; as it is for a list per q head."""
        return self if heads_per_list == 1 else replace(self, num_q_heads=self.num_kv_heads * heads_per_list)

    def grid(self, block_size_q: int, block_size_k: int) -> BlockGrid:
        """This case's lengths in blocks of the given sizes."""
        return BlockGrid(self.seqlen_q, self.seqlen_k, block_size_q, block_size_k)

    def qkv(self, head_dim: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Seeded normal q, k, v in this case's layout, NaN wherever no token lies."""
        draw = torch.Generator(device=device).manual_seed(self.seqlen_q * 7919 + self.seqlen_k + self.num_q_heads)
        kv_size = (self.seqlen_k, self.num_kv_heads)
        q, k, v = (
            torch.randn(self.batch, seqlen, heads, head_dim, generator=draw, device=device).to(dtype)
            for seqlen, heads in ((self.seqlen_q, self.num_q_heads), kv_size, kv_size)
        )
        return poisoned_qkv(q * self.gain, k, v, self.layout)

    def block_mask(self, grid: BlockGrid, device: torch.device, heads_per_list: int = 1) -> Tensor:
        """The case's mask, bool [batch, num_lists, num_q_blocks, num_k_blocks]; never a block out of sight.

        num_lists: num_q_heads // heads_per_list.
        """
        visible = visible_blocks(grid, device)
        num_lists = self.num_q_heads // heads_per_list
        shape = (self.batch, num_lists, *visible.shape)
        if self.mask == "all":
            return visible.expand(shape).clone()
        if self.mask == "empty":
            return torch.zeros(shape, dtype=torch.bool, device=device)
        if self.mask == "diagonal":
            return diagonal_blocks(grid, device).expand(shape).clone()
        if self.mask == "scattered":
            draw = torch.Generator(device=device).manual_seed(grid.num_k_blocks)
            return (torch.rand(shape, generator=draw, device=device) < SCATTERED_DENSITY) & visible
        masks = [causal_block_mask(grid, num_lists, SPARSE_DENSITY, seed=b, device=device) for b in range(self.batch)]
        return torch.stack(masks)


# Tiny and ragged first: one token, a part of a block, a block less one, a block, a block and one, several and a part.
RAGGED = tuple(
    Case(n, n, layout=LAYOUTS[i % 3], batch=1 + i % 2, lse=i % 4 != 3)
    for i, n in enumerate((1, 17, 63, 64, 65, 127, 128, 129, 191, 255, 256, 300, 383, 641))
)
# A prefix that is a multiple of no block, of 64 only, of 128; one query; a chunk behind a long prefix.
PREFIXED_LENGTHS = (
    *((1, 129), (1, 1000), (64, 192), (100, 300), (128, 384)),
    *((63, 64), (129, 257), (5, 1029), (200, 1000), (256, 1280)),
)
PREFIXED = tuple(
    Case(q, k, layout=LAYOUTS[i % 3], batch=1 + i % 2, mask="scattered" if i % 2 else "sparse")
    for i, (q, k) in enumerate(PREFIXED_LENGTHS)
)
GROUPS = tuple(
    Case(130, 200, num_q_heads=q, num_kv_heads=kv, batch=2 if q < 5 else 1)
    for q, kv in ((1, 1), (4, 4), (2, 1), (3, 1), (9, 3), (5, 1), (6, 1), (7, 1), (8, 1), (16, 2))
)
LISTS = (
    Case(512, 512, mask="all"),
    Case(300, 450, mask="all", layout="head_major"),
    Case(512, 512, mask="scattered", batch=3),
    Case(333, 333, mask="scattered", layout="fused", num_q_heads=6),
    Case(256, 256, mask="empty"),
    Case(700, 700, mask="diagonal", layout="head_major"),
    Case(130, 777, mask="diagonal"),
    Case(640, 640, gain=8.0, mask="all"),
    Case(384, 700, gain=0.05, mask="scattered"),
    Case(300, 900, gain=1000.0),  # logits that leap by over 83 between steps, computed again
    Case(640, 640, gain=1000.0, mask="scattered"),
    # More tiles than CTAs, empty ones among them: ends and starts that overlap, slots used again, both directions.
    Case(1024, 1024, num_q_heads=32, num_kv_heads=16, batch=2, mask="scattered"),
    Case(700, 1000, num_q_heads=64, num_kv_heads=32, batch=2),
    Case(2048, 2048, num_q_heads=8, num_kv_heads=2),
)
ATTEND_CASES = (*RAGGED, *PREFIXED, *GROUPS, *LISTS)
QUICK_CASES = (RAGGED[0], RAGGED[7], PREFIXED[3], GROUPS[4], LISTS[1], LISTS[2], LISTS[5])
SANITIZER_CASES = (
    Case(129, 129, num_q_heads=2, num_kv_heads=1),
    Case(100, 300, num_q_heads=2, mask="scattered"),
    Case(100, 300, num_q_heads=2, mask="all", gain=1000.0),  # logits computed again, from keys read once more
)
