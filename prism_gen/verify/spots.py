"""Spots of an output too large for float64 as a whole.

Owns which query blocks are compared and the verdict. Must not launch kernels.
"""

from __future__ import annotations

from torch import Tensor

from prism_gen.runtime.grid import BlockGrid
from prism_gen.verify import oracle
from prism_gen.verify.problem import Problem
from prism_gen.verify.report import Findings

NUM_SPOTS = 4  # (head, query block) pairs of a large problem that are compared with float64


def spot_check(found: Findings, problem: Problem, out: Tensor) -> None:
    """Compares NUM_SPOTS (head, query block) pairs of a large output with float64, among them the very last.

    out: as prepare_launch made it, NaN where the kernel never wrote; there must be no such place.
    """
    found.require(not bool(out.isnan().any()), "a part of the output was never written, or is NaN")
    grid, heads = problem.grid, problem.q.shape[2]
    worst = 0.0
    for spot in range(NUM_SPOTS):
        head = spot * (heads - 1) // (NUM_SPOTS - 1)
        block = (grid.num_q_blocks - 1) * (spot + 1) // NUM_SPOTS
        worst = max(worst, _share_of_limit(problem, out, head, block))
    found.figures["spot_share_of_limit"] = round(worst, 3)
    found.require(worst <= 1.0, f"a spot of the output is off by {worst:.3g} times the limit")


def _share_of_limit(problem: Problem, out: Tensor, head: int, block: int) -> float:
    """Largest error of one query block of one head / what is allowed."""
    grid = problem.grid
    start, stop = block * grid.block_size_q, min((block + 1) * grid.block_size_q, grid.seqlen_q)
    window = BlockGrid(stop - start, stop + grid.prefix, grid.block_size_q, grid.block_size_k)
    row = problem.block_mask[head // problem.heads_per_list, block, : window.num_k_blocks]
    tokens = oracle.token_mask(row[None, None, None], window)
    kv_head = head // (problem.q.shape[2] // problem.k.shape[2])
    chosen = tokens.any(-2).flatten()  # only keys that a query of the block sees, so that float64 stays small at 128K
    k, v = (x[:, : window.seqlen_k, kv_head : kv_head + 1][:, chosen] for x in (problem.k, problem.v))
    q, tokens = problem.q[:, start:stop, head : head + 1], tokens[..., chosen]
    exact, _ = oracle.attend(q, k, v, tokens, problem.softmax_scale)
    from_torch = oracle.torch_attend(q, k, v, tokens, problem.softmax_scale)
    limit = oracle.error_limit(oracle.max_abs(from_torch.double() - exact))
    return oracle.max_abs(out[:, start:stop, head : head + 1].double() - exact) / limit
