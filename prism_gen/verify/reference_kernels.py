"""The plain-torch reference as kernels under check, so that the check's own logic runs on any machine.

Owns which problems the reference stands in for, and the raw signatures of templates/README.md around it. Must not judge
answers or make inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from prism_gen import rope
from prism_gen.errors import UnsupportedError
from prism_gen.families import AttendProblem, PoolProblem, RotateProblem, ScoreProblem, SelectProblem, SubpoolProblem
from prism_gen.model import RopeSpec, SelectionSpec
from prism_gen.runtime import reference
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.reference_pool import pool_chunk
from prism_gen.runtime.reference_rotate import rotate
from prism_gen.runtime.rules import SelectRules
from prism_gen.runtime.selection import Selection
from prism_gen.schedules import kernel_spec
from prism_gen.spec import KernelSpec, Problem
from prism_gen.verify.kernels import Kernel, bands_of
from prism_gen.verify.reference_subblock_kernels import ReferenceScore, reference_subpool, write_lists

# The head dims and block sizes the reference stands in for: a small set that still takes every code path of a check.
REFERENCE_DTYPES = ("bf16", "fp16")
REFERENCE_HEAD_DIM = 64
REFERENCE_ROPES = ((REFERENCE_HEAD_DIM, False), (REFERENCE_HEAD_DIM // 2, True))  # rotary_dim, interleaved
REFERENCE_BLOCKS = ((128, 128, 1), (128, 64, 1), (64, 64, 1), (32, 64, 4))  # q tokens, k tokens, heads per list
REFERENCE_SUB_BLOCKS = ((8, 8), (32, 4))  # in a query block, in a key block


def reference_kernels() -> list[Kernel]:
    """The reference as kernels: every family, both dtypes, one head dim, three block shapes, on any device."""
    split = rope.bands(RopeSpec(rotary_dim=REFERENCE_HEAD_DIM), REFERENCE_HEAD_DIM, SelectionSpec(), block_size=128)
    high, low = split.high_dims, split.low_dims
    pools = [
        PoolProblem(dtype=dtype, head_dim=REFERENCE_HEAD_DIM, high_dims=high, low_dims=low)
        for dtype in REFERENCE_DTYPES
    ]
    rotates = [
        RotateProblem(
            dtype=dtype,
            head_dim=REFERENCE_HEAD_DIM,
            rotary_dim=rotary_dim,
            interleaved=interleaved,
            high_dims=high,
            low_dims=low,
        )
        for dtype in REFERENCE_DTYPES
        for rotary_dim, interleaved in REFERENCE_ROPES
    ]
    select = SelectProblem(head_dim=REFERENCE_HEAD_DIM, high_dims=high, low_dims=low)
    attends = [
        AttendProblem(
            dtype=dtype, head_dim=REFERENCE_HEAD_DIM, block_size_q=q, block_size_k=k, heads_per_list=heads_per_list
        )
        for dtype in REFERENCE_DTYPES
        for q, k, heads_per_list in REFERENCE_BLOCKS
    ]
    subpools = [SubpoolProblem(dtype=dtype, head_dim=REFERENCE_HEAD_DIM) for dtype in REFERENCE_DTYPES]
    scores = [
        ScoreProblem(head_dim=REFERENCE_HEAD_DIM, rows_per_block=rows, columns_per_block=columns)
        for rows, columns in REFERENCE_SUB_BLOCKS
    ]
    problems: dict[str, Sequence[Problem]] = {
        "pool": pools,
        "rotate": rotates,
        "select": [select],
        "subpool": subpools,
        "score": scores,
        "attend": attends,
    }
    return [reference_kernel(kernel_spec(family, "sm90", p)) for family, some in problems.items() for p in some]


def reference_kernel(spec: KernelSpec) -> Kernel:
    """The reference in the place of one kernel. Raises: UnsupportedError for a family whose signature it lacks."""
    problem = spec.problem
    if spec.family == "pool":
        return Kernel(spec, _ReferencePool(problem))
    if spec.family == "rotate":
        return _reference_rotate(spec)
    if spec.family == "select":
        return Kernel(spec, _ReferenceSelect(problem), lambda *_: 0)
    if spec.family == "subpool":
        return Kernel(spec, reference_subpool)
    if spec.family == "score":
        return Kernel(spec, ReferenceScore(problem), lambda *_: 0)
    if spec.family == "attend":
        return Kernel(spec, _ReferenceAttend(problem))
    raise UnsupportedError(
        f"no plain-torch stand-in for a kernel of the family {spec.family!r}",
        exists="pool, rotate, select, subpool, score, attend",
        fix="add one to prism_gen/verify/reference_kernels.py",
    )


class _ReferencePool:
    """reference_pool.pool_chunk behind pool's raw signature."""

    def __init__(self, problem: PoolProblem | RotateProblem) -> None:
        self._problem = problem

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        q_mean: Tensor,
        q_energy: Tensor,
        k_mean: Tensor,
        k_energy: Tensor,
        block_size_q: int,
        block_size_k: int,
        k_start: int,
        tail_in: Tensor | None,
        tail_out: Tensor | None,
    ) -> None:
        self._pool(q, q_mean, q_energy, block_size_q)
        self._pool(k, k_mean, k_energy, block_size_k, start=k_start, tail=tail_in, tail_out=tail_out)

    def _pool(
        self,
        x: Tensor,
        mean: Tensor,
        energy: Tensor,
        block_size: int,
        *,
        start: int = 0,
        tail: Tensor | None = None,
        tail_out: Tensor | None = None,
    ) -> None:
        if x.shape[1] == 0:
            return
        chunk = pool_chunk(x, block_size, bands_of(self._problem), start=start, tail=tail)
        first, end = start // block_size, start + x.shape[1]
        mean[:, :, first : first + chunk.mean.shape[2]] = chunk.mean
        energy[:, :, first : first + chunk.mean.shape[2]] = chunk.energy
        if tail_out is not None and end % block_size:
            tail_out.copy_(chunk.tail)


def _reference_rotate(spec: KernelSpec) -> Kernel:
    """reference_rotate.rotate and reference_pool behind rotate's raw signatures."""
    problem: RotateProblem = spec.problem
    pooling = _ReferencePool(problem)

    def alone(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, q_out: Tensor, k_out: Tensor) -> None:
        for x, out in ((q, q_out), (k, k_out)):
            out.copy_(rotate(x, cos, sin, interleaved=problem.interleaved))

    def launch(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, q_out: Tensor, k_out: Tensor, *pooled: Any) -> None:
        alone(q, k, cos, sin, q_out, k_out)
        pooling(q_out, k_out, *pooled)

    def sub_blocks(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, q_out: Tensor, k_out: Tensor, *means: Any) -> None:
        alone(q, k, cos, sin, q_out, k_out)
        reference_subpool(q_out, k_out, *means)

    return Kernel(spec, launch, alone=alone, sub_blocks=sub_blocks)


class _ReferenceSelect:
    """reference.select behind select's raw signature."""

    def __init__(self, problem: SelectProblem) -> None:
        self._problem = problem

    def __call__(
        self,
        q_mean: Tensor,
        k_mean: Tensor,
        q_energy: Tensor,
        k_energy: Tensor,
        thresholds: Tensor,
        block_size_q: int,
        block_size_k: int,
        seqlen_q: int,
        seqlen_k: int,
        force_sink: int,
        force_recent: int,
        share_group: int,
        prefix_calibration: int,
        cut_kind: int,
        block_indices: Tensor,
        block_counts: Tensor,
        wanted_counts: Tensor | None,
        probs: Tensor | None,
        scratch: Tensor | None,
    ) -> None:
        rules = (force_sink, force_recent, share_group, prefix_calibration, cut_kind)
        chosen = reference.select(
            q_mean,
            k_mean,
            q_energy,
            k_energy,
            thresholds,
            bands=bands_of(self._problem),
            grid=BlockGrid(seqlen_q, seqlen_k, block_size_q, block_size_k),
            rules=SelectRules.of_kernel_arguments(*rules, max_blocks=block_indices.shape[-1]),
        )
        write_lists(chosen, block_indices, block_counts, wanted_counts, probs)


class _ReferenceAttend:
    """reference.attend behind attend's raw signature."""

    def __init__(self, problem: AttendProblem) -> None:
        self._problem = problem

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor | None,
        block_indices: Tensor,
        block_counts: Tensor,
        softmax_scale: float,
        tile_counter: Tensor,
    ) -> None:
        grid = BlockGrid(q.shape[1], k.shape[1], self._problem.block_size_q, self._problem.block_size_k)
        selection = Selection(block_indices, block_counts, grid)
        new_out, new_lse = reference.attend(q, k, v, selection, softmax_scale=softmax_scale)
        out.copy_(new_out)
        if lse is not None:
            lse.copy_(new_lse)
