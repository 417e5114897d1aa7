"""The compiled kernels of the paper's estimator as a Backend: pool, select, attend.

Owns the calling convention of templates/README.md for the first two. Never synchronises. Must not check user input
(checks.py) or choose kernels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from prism_gen.runtime.backend import OWN_FORMAT, Pooled
from prism_gen.runtime.cuda_stages import CudaStages
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.pooled_keys import PooledKeys
from prism_gen.runtime.rules import PAPER_RULES, SelectRules
from prism_gen.runtime.selection import Selection


class PoolOutputs(NamedTuple):
    """The arguments of pool and rotate behind their inputs, in their order."""

    q_mean: Tensor
    q_energy: Tensor
    k_mean: Tensor
    k_energy: Tensor
    block_size_q: int
    block_size_k: int
    k_start: int
    tail_in: Tensor | None
    tail_out: Tensor | None


class CudaBackend(CudaStages[PoolOutputs]):
    """Launches the kernels that resolve.py chose."""

    means = OWN_FORMAT

    def __init__(
        self, *, pool: Any, select: Any, attend: Any, rotate: Any | None = None, rules: SelectRules = PAPER_RULES
    ) -> None:
        """Binds the exported functions of the modules once. rotate: None where the model does not ask for it."""
        super().__init__(
            pool=pool.get_function("pool"),
            rotate=None if rotate is None else rotate.get_function("rotate"),
            attend=attend.get_function("attend"),
            rules=rules,
        )
        self._select = select.get_function("select")
        self._scratch_floats = select.get_function("scratch_floats")

    def _outputs(self, q: Tensor, k: Tensor, grid: BlockGrid, cache: PooledKeys | None) -> PoolOutputs:
        q_outputs, sizes = _empty_pooled(q, grid.num_q_blocks), (grid.block_size_q, grid.block_size_k)
        if cache is None:
            return PoolOutputs(*q_outputs, *_empty_pooled(k, grid.num_k_blocks), *sizes, 0, None, None)
        return PoolOutputs(*q_outputs, cache.mean, cache.energy, *sizes, cache.num_tokens, cache.tail, cache.next_tail)

    def _pooled(self, outputs: PoolOutputs, grid: BlockGrid, cache: PooledKeys | None) -> Pooled:
        k_mean, k_energy = outputs.k_mean, outputs.k_energy
        if cache is not None:
            cache.advance(grid.seqlen_k)
            k_mean, k_energy = cache.pooled()
        return Pooled(outputs.q_mean, k_mean, outputs.q_energy, k_energy, grid)

    def select(self, pooled: Pooled, thresholds: Tensor, *, softmax_scale: float, with_probs: bool) -> Selection:
        """See Backend.select; these kernels score by bands and need no softmax_scale.

        What follows a row's block_counts in block_indices is not written.
        """
        q_mean, k_mean, q_energy, k_energy, grid = pooled
        rules, chosen = self._rules, self._empty_selection(pooled, num_probs=2 if with_probs else 0)
        heads = (q_mean.shape[1], k_mean.shape[1], int(rules.share == "group"))
        num_floats = self._scratch_floats(q_mean.shape[0], *heads, grid.num_q_blocks, grid.num_k_blocks)
        scratch = torch.empty(num_floats, dtype=torch.float32, device=q_mean.device) if num_floats else None
        self._select(
            q_mean,
            k_mean,
            q_energy,
            k_energy,
            thresholds,
            *_sizes(grid),
            *rules.kernel_arguments(),
            chosen.block_indices,
            chosen.block_counts,
            chosen.wanted_counts,
            chosen.probs,
            scratch,
        )
        return chosen


def _empty_pooled(x: Tensor, num_blocks: int) -> tuple[Tensor, Tensor]:
    """Room for the means and energies of x [batch, seqlen, num_heads, head_dim]."""
    rows = (x.shape[0], x.shape[2], num_blocks)
    mean = torch.empty(*rows, x.shape[3], dtype=torch.float32, device=x.device)
    return mean, torch.empty(*rows, 3, dtype=torch.float32, device=x.device)


def _sizes(grid: BlockGrid) -> tuple[int, int, int, int]:
    return grid.block_size_q, grid.block_size_k, grid.seqlen_q, grid.seqlen_k
