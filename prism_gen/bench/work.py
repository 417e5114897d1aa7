"""How much a stage does at least: the FLOPs and bytes that its figure is put under the roofline with.

Owns that count. Must not time.
"""

from __future__ import annotations

from prism_gen.model import ModelSpec
from prism_gen.specialize import block_pair_scoring
from prism_gen.sub_blocks import SubBlocks
from prism_gen.verify.problem import Problem


def selection_flops(model: ModelSpec, problem: Problem) -> float:
    """One addition for each element of q and k, and the products of the means of every visible pair of blocks.

    The means are of whole blocks in both bands, or of sub-blocks in all dims; exponentials and searches are not FLOPs.
    """
    grid, num_q_heads = problem.grid, problem.q.shape[2]
    scoring = block_pair_scoring(model, problem.block_sizes)
    if isinstance(scoring, SubBlocks):
        dims = model.head_dim * (grid.block_size_q // scoring.q) * (grid.block_size_k // scoring.k)
    else:
        dims = len(scoring.high_dims) + len(scoring.low_dims)
    pooling = problem.q.numel() + problem.k.numel()
    return float(pooling + 2 * dims * grid.total_visible * num_q_heads)


def selection_bytes(problem: Problem) -> float:
    """q and k, read once."""
    return float(sum(x.numel() * x.element_size() for x in (problem.q, problem.k)))


def attend_bytes(problem: Problem) -> float:
    """q, k and v read once, out written."""
    return float(sum(x.numel() * x.element_size() for x in (problem.q, problem.q, problem.k, problem.v)))
