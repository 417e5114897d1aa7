"""The compiled kernels of the subblock estimator as a Backend: subpool, score, attend.

Owns the calling convention of templates/README.md for the first two. Never synchronises. Must not check user input
(checks.py) or choose kernels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from prism_gen.families.score import TILE_COLUMNS
from prism_gen.runtime.backend import MeansFormat, Pooled
from prism_gen.runtime.cuda_stages import CudaStages
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.pooled_keys import PooledKeys
from prism_gen.runtime.rules import CUT_KINDS, PAPER_RULES, SelectRules
from prism_gen.runtime.selection import Selection
from prism_gen.sub_blocks import SubBlocks


class SubpoolOutputs(NamedTuple):
    """The arguments of subpool and rotate_sub_blocks behind their inputs, in their order."""

    q_sub: Tensor
    k_sub: Tensor
    sub_block_q: int
    sub_block_k: int
    k_start: int
    tail_in: Tensor | None
    tail_out: Tensor | None


class CudaSubBlockBackend(CudaStages[SubpoolOutputs]):
    """Launches the kernels that resolve.py chose.

    Its Pooled holds fp16 means: of q as the reference has them; of k in tiles of 128, each in the order that suits the
    matrix instruction (templates/README.md), the last of them filled up with what nobody reads. Energies are empty.
    """

    means = MeansFormat(torch.float16, TILE_COLUMNS)

    def __init__(
        self,
        *,
        subpool: Any,
        score: Any,
        attend: Any,
        sub_blocks: SubBlocks,
        rotate: Any | None = None,
        rules: SelectRules = PAPER_RULES,
    ) -> None:
        """Binds the exported functions of the modules once. rotate: None where the model does not ask for it."""
        super().__init__(
            pool=subpool.get_function("subpool"),
            rotate=None if rotate is None else rotate.get_function("rotate_sub_blocks"),
            attend=attend.get_function("attend"),
            rules=rules,
        )
        self._score = score.get_function("score")
        self._scratch_floats = score.get_function("scratch_floats")
        self._sub_blocks = sub_blocks

    def _outputs(self, q: Tensor, k: Tensor, grid: BlockGrid, cache: PooledKeys | None) -> SubpoolOutputs:
        fine = self._sub_blocks
        q_sub = _empty_means(q, -(-q.shape[1] // fine.q))
        if cache is None:
            k_sub = _empty_means(k, self.means.num_means(k.shape[1], fine.k))
            return SubpoolOutputs(q_sub, k_sub, fine.q, fine.k, 0, None, None)
        return SubpoolOutputs(q_sub, cache.mean, fine.q, fine.k, cache.num_tokens, cache.tail, cache.next_tail)

    def _pooled(self, outputs: SubpoolOutputs, grid: BlockGrid, cache: PooledKeys | None) -> Pooled:
        if cache is not None:
            cache.advance(grid.seqlen_k)
        q_mean, k_mean = outputs.q_sub, outputs.k_sub
        # Two tensors: an operator's outputs may not share memory, and torch asks where even nothing lies.
        q_energy, k_energy = (torch.empty(*x.shape[:3], 0, dtype=x.dtype, device=x.device) for x in (q_mean, k_mean))
        return Pooled(q_mean, k_mean, q_energy, k_energy, grid)

    def select(self, pooled: Pooled, thresholds: Tensor, *, softmax_scale: float, with_probs: bool) -> Selection:
        """See Backend.select; some launches. What follows a row's block_counts in block_indices is not written."""
        q_mean, k_mean, grid = pooled.q_mean, pooled.k_mean, pooled.grid
        rules, fine, device = self._rules, self._sub_blocks, q_mean.device
        chosen = self._empty_selection(pooled, num_probs=1 if with_probs else 0)
        sizes = (fine.q, fine.k, grid.seqlen_q, grid.seqlen_k)
        num_floats = self._scratch_floats(*q_mean.shape[:2], k_mean.shape[1], *sizes, device.index)
        self._score(
            q_mean,
            k_mean,
            thresholds,
            softmax_scale,
            *sizes,
            int(rules.force_sink),
            int(rules.force_recent),
            int(rules.share == "group"),
            int(fine.reduce == "mean"),
            int(fine.exclude_forced),
            CUT_KINDS.index(rules.cut),
            chosen.block_indices,
            chosen.block_counts,
            chosen.wanted_counts,
            chosen.probs,
            torch.empty(num_floats, dtype=torch.float32, device=device),
        )
        return chosen


def _empty_means(x: Tensor, num_means: int) -> Tensor:
    """Room for the means of x [batch, tokens, num_heads, head_dim]."""
    return torch.empty(x.shape[0], x.shape[2], num_means, x.shape[3], dtype=torch.float16, device=x.device)
