"""The plain-torch subblock estimator as kernels under check: subpool and score behind their raw signatures.

Owns those two stand-ins (reference_kernels.py has the others). Must not judge answers or make inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prism_gen.families import ScoreProblem
from prism_gen.runtime import reference_subblock
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.reference_pool import pool, pool_chunk
from prism_gen.runtime.rules import CUT_KINDS, SelectRules
from prism_gen.runtime.selection import Selection
from prism_gen.sub_blocks import SubBlocks
from prism_gen.verify.subblock_cases import tile_places


def write_lists(
    chosen: Selection, block_indices: Tensor, block_counts: Tensor, wanted_counts: Tensor | None, probs: Tensor | None
) -> None:
    """Writes a selection as a kernel does: nothing behind a row's count."""
    block_counts.copy_(chosen.block_counts)
    if wanted_counts is not None and chosen.wanted_counts is not None:
        wanted_counts.copy_(chosen.wanted_counts)
    width = chosen.block_indices.shape[-1]
    used = torch.arange(width, device=block_counts.device) < block_counts[..., None]
    block_indices[..., :width] = torch.where(used, chosen.block_indices, block_indices[..., :width])
    if probs is not None and chosen.probs is not None:
        probs.copy_(chosen.probs)


def reference_subpool(
    q: Tensor,
    k: Tensor,
    q_sub: Tensor,
    k_sub: Tensor,
    sub_block_q: int,
    sub_block_k: int,
    k_start: int,
    tail_in: Tensor | None,
    tail_out: Tensor | None,
) -> None:
    """reference_pool.pool_chunk behind subpool's raw signature."""
    q_sub.copy_(pool(q, sub_block_q, None)[0])
    if k.shape[1] == 0:
        return
    chunk = pool_chunk(k, sub_block_k, None, start=k_start, tail=tail_in)
    first = k_start // sub_block_k
    k_sub[:, :, tile_places(first + chunk.mean.shape[2], k.device)[first:]] = chunk.mean.half()
    if tail_out is not None and (k_start + k.shape[1]) % sub_block_k:
        tail_out.copy_(chunk.tail)


class ReferenceScore:
    """reference_subblock.select behind score's raw signature."""

    def __init__(self, problem: ScoreProblem) -> None:
        self._problem = problem

    def __call__(
        self,
        q_sub: Tensor,
        k_sub: Tensor,
        thresholds: Tensor,
        softmax_scale: float,
        sub_block_q: int,
        sub_block_k: int,
        seqlen_q: int,
        seqlen_k: int,
        force_sink: int,
        force_recent: int,
        share_group: int,
        reduce_mean: int,
        exclude_forced: int,
        cut_kind: int,
        block_indices: Tensor,
        block_counts: Tensor,
        wanted_counts: Tensor | None,
        probs: Tensor | None,
        scratch: Tensor,
    ) -> None:
        problem = self._problem
        sizes = (problem.rows_per_block * sub_block_q, problem.columns_per_block * sub_block_k)
        chosen = reference_subblock.select(
            q_sub.float(),
            k_sub[:, :, tile_places(-(-seqlen_k // sub_block_k), k_sub.device)].float(),
            thresholds,
            sub_blocks=SubBlocks(sub_block_q, sub_block_k, "mean" if reduce_mean else "max", bool(exclude_forced)),
            grid=BlockGrid(seqlen_q, seqlen_k, *sizes),
            softmax_scale=softmax_scale,
            rules=SelectRules(
                force_sink=bool(force_sink),
                force_recent=bool(force_recent),
                share="group" if share_group else "head",
                cut=CUT_KINDS[cut_kind],
                max_blocks=block_indices.shape[-1],
            ),
        )
        write_lists(chosen, block_indices, block_counts, wanted_counts, probs)
