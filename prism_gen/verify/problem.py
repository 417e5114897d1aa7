"""One attention call of any size on random inputs, for timing and for spot checks.

Owns the type, its FLOPs, and how a kernel is launched on it. Must not time or judge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.selection import visible_blocks
from prism_gen.verify.kernels import Kernel
from prism_gen.verify.masks import attend_flops, causal_block_mask, compact


@dataclass(frozen=True)
class Problem:
    """One attention call: q [batch, seqlen_q, num_q_heads, head_dim], k, v likewise with num_kv_heads, contiguous.

    block_mask: bool [num_lists, num_q_blocks, num_k_blocks]; num_lists is num_q_heads, or num_kv_heads where the q
    heads of a KV head share their list, the same for every sequence. block_size_q counts positions either way.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    block_mask: Tensor
    grid: BlockGrid
    softmax_scale: float

    @property
    def block_sizes(self) -> tuple[int, int]:
        """(q, k) tokens."""
        return self.grid.block_size_q, self.grid.block_size_k

    @property
    def group_size(self) -> int:
        """Q heads of one KV head."""
        return self.q.shape[2] // self.k.shape[2]

    @property
    def heads_per_list(self) -> int:
        """Q heads that share a row of block_mask."""
        return self.q.shape[2] // self.block_mask.shape[0]

    @property
    def head_mask(self) -> Tensor:
        """The mask of each q head: [num_q_heads, num_q_blocks, num_k_blocks] bool."""
        shared = self.heads_per_list
        return self.block_mask if shared == 1 else self.block_mask.repeat_interleave(shared, 0)

    @property
    def selected_flops(self) -> float:
        """FLOPs of all sequences and q heads on their selected blocks, as attend_flops counts."""
        return self.q.shape[0] * self.heads_per_list * attend_flops(self.block_mask, self.grid, self.q.shape[-1])

    @property
    def dense_flops(self) -> float:
        """FLOPs of all sequences and q heads on every visible block."""
        visible = visible_blocks(self.grid, self.q.device)[None]
        return self.q.shape[0] * self.q.shape[2] * attend_flops(visible, self.grid, self.q.shape[-1])

    @property
    def heads_first(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v as contiguous [batch, heads, seqlen, head_dim]."""
        q, k, v = (x.transpose(1, 2).contiguous() for x in (self.q, self.k, self.v))
        return q, k, v


def make_problem(
    kernel: Kernel,
    seqlen: int,
    density: float,
    heads: tuple[int, int],
    device: torch.device,
    *,
    batch: int = 1,
    first_dense: bool = False,
) -> Problem:
    """Seeded normal inputs and a mask for an attend kernel. heads: (q, kv). first_dense: the first list is all."""
    spec = kernel.problem
    draw = torch.Generator(device=device).manual_seed(0)
    q, k, v = (
        torch.randn(batch, seqlen, count, spec.head_dim, generator=draw, device=device, dtype=kernel.dtype)
        for count in (heads[0], heads[1], heads[1])
    )
    grid = BlockGrid(seqlen, seqlen, spec.block_size_q, spec.block_size_k)
    mask = causal_block_mask(grid, heads[0] // spec.heads_per_list, density, device=device)
    if first_dense:
        mask[0] = visible_blocks(grid, device)
    return Problem(q, k, v, mask, grid, spec.head_dim**-0.5)


def prepare_launch(kernel: Kernel, problem: Problem) -> tuple[Callable[[], object], Tensor]:
    """One attend launch as a call, and the output it writes."""
    indices, counts = compact(problem.block_mask)
    batch = problem.q.shape[0]
    indices, counts = (x.expand(batch, *x.shape).contiguous() for x in (indices, counts))
    out = torch.full_like(problem.q, float("nan"))
    counter = torch.zeros(1, dtype=torch.int32, device=out.device)
    scale = problem.softmax_scale
    return partial(kernel.launch, problem.q, problem.k, problem.v, out, None, indices, counts, scale, counter), out
