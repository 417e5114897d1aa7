"""One selection of the subblock estimator to time, subpool and score, on seeded random inputs.

Owns its inputs and the order of the kernels' arguments. Must not time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from prism_gen.bench.directions import sharpen
from prism_gen.families.score import TILE_COLUMNS
from prism_gen.runtime.grid import BlockGrid
from prism_gen.verify.kernels import Kernel
from prism_gen.verify.subblock import softmax_scale
from prism_gen.verify.subblock_cases import SubBlockCase, in_tile_order

THRESHOLD = 0.94
FINE = (8, 8)  # sub-blocks (q, k) of a kernel that is timed alone: those that the measurements favour
DEFAULT_RULES = (1, 1, 0, 0, 0, 0)  # force_sink, force_recent, share_group, reduce_mean, exclude_forced, cut_kind
DIRECTION_TOKENS = 64  # over which the directions stay, so that few keys matter


class FineProblem(NamedTuple):
    """Inputs and outputs of one selection; run() launches both kernels."""

    subpool: Kernel
    score: Kernel
    fine: tuple[int, int]
    grid: BlockGrid
    q: Tensor
    k: Tensor
    buffers: dict[str, Tensor]

    def run_subpool(self) -> None:
        """Launches subpool on q and k."""
        b = self.buffers
        self.subpool.launch(self.q, self.k, b["q_sub"], b["k_sub"], *self.fine, 0, None, None)

    def run_score(self) -> None:
        """Launches score on what subpool left."""
        b, grid = self.buffers, self.grid
        means, lists = (b["q_sub"], b["k_sub"], b["thresholds"]), (b["block_indices"], b["block_counts"])
        lengths = (*self.fine, grid.seqlen_q, grid.seqlen_k)
        self.score.launch(
            *means, softmax_scale(self.score.problem), *lengths, *DEFAULT_RULES, *lists, None, None, b["scratch"]
        )

    def run(self) -> None:
        """Launches both."""
        self.run_subpool()
        self.run_score()


def make_fine_problem(
    kernels: tuple[Kernel, Kernel],
    fine: tuple[int, int],
    seqlen: int,
    heads: tuple[int, int],
    device: torch.device,
    *,
    batch: int = 1,
) -> FineProblem:
    """Seeded normal q and k with a few common directions, and poisoned outputs. kernels: subpool, score."""
    subpool, score = kernels
    head_dim, problem = score.problem.head_dim, score.problem
    grid = BlockGrid(seqlen, seqlen, problem.rows_per_block * fine[0], problem.columns_per_block * fine[1])
    draw = torch.Generator(device=device).manual_seed(7)
    shapes = ((batch, seqlen, count, head_dim) for count in heads)
    q, k = (torch.randn(shape, generator=draw, device=device).to(subpool.dtype) for shape in shapes)
    sharpen(q, k, (DIRECTION_TOKENS, DIRECTION_TOKENS))
    rows = (batch, heads[0], grid.num_q_blocks)
    k_rows = -(-seqlen // (fine[1] * TILE_COLUMNS)) * TILE_COLUMNS
    floats = (
        score.scratch_floats(batch, *heads, *fine, seqlen, seqlen, device.index or 0) if score.scratch_floats else 0
    )
    buffers = {
        "q_sub": torch.empty(batch, heads[0], -(-seqlen // fine[0]), head_dim, dtype=torch.float16, device=device),
        "k_sub": torch.empty(batch, heads[1], k_rows, head_dim, dtype=torch.float16, device=device),
        "thresholds": torch.full((heads[0], 1), THRESHOLD, device=device),
        "block_indices": torch.full((*rows, grid.num_k_blocks), -1, dtype=torch.int32, device=device),
        "block_counts": torch.full(rows, -1, dtype=torch.int32, device=device),
        "scratch": torch.empty(floats, device=device),
    }
    return FineProblem(subpool, score, fine, grid, q, k, buffers)


def subpool_calls(
    kernels: Sequence[Kernel], seqlen: int, batch: int, heads: tuple[int, int], device: torch.device
) -> list[Callable[[], object]]:
    """One launch of each subpool kernel on the same tokens."""
    head_dim, draw = kernels[0].problem.head_dim, torch.Generator(device=device).manual_seed(seqlen)
    shapes = ((batch, seqlen, count, head_dim) for count in heads)
    q, k = (torch.randn(shape, generator=draw, device=device).to(kernels[0].dtype) for shape in shapes)
    rows = (-(-seqlen // FINE[0]), -(-seqlen // (FINE[1] * TILE_COLUMNS)) * TILE_COLUMNS)
    outputs = [
        torch.empty(batch, count, n, head_dim, dtype=torch.float16, device=device)
        for count, n in zip(heads, rows, strict=True)
    ]
    return [partial(kernel.launch, q, k, *outputs, *FINE, 0, None, None) for kernel in kernels]


def score_calls(
    kernels: Sequence[Kernel], seqlen: int, batch: int, heads: tuple[int, int], device: torch.device
) -> list[Callable[[], object]]:
    """One launch of each score kernel, all of one problem, on the same means; scratch is each kernel's own."""
    problem = kernels[0].problem
    case = SubBlockCase(seqlen, seqlen, *FINE, *heads, batch=batch, means="flat")
    q_sub, k_sub = case.sub_means(problem.head_dim, device)
    grid, sizes = case.grid(problem), (*FINE, seqlen, seqlen)
    rows = (batch, heads[0], grid.num_q_blocks)
    inputs = (q_sub, in_tile_order(k_sub), torch.full((heads[0], 1), THRESHOLD, device=device), softmax_scale(problem))
    indices = torch.empty(*rows, grid.num_k_blocks, dtype=torch.int32, device=device)
    lists = (indices, torch.empty(rows, dtype=torch.int32, device=device), None, None)
    calls: list[Callable[[], object]] = []
    for kernel in kernels:
        floats = kernel.scratch_floats(batch, *heads, *sizes, device.index or 0) if kernel.scratch_floats else 0
        scratch = torch.empty(floats, device=device)
        calls.append(partial(kernel.launch, *inputs, *sizes, *DEFAULT_RULES, *lists, scratch))
    return calls
