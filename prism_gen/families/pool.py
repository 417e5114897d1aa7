"""pool: block means of q or k, and the energies of their bands (method.md steps 1 and 3).

Owns its Problem, Schedule and template context. Must not choose a schedule (schedules.py does).
"""

from __future__ import annotations

from typing import Any

from prism_gen.dtypes import dtype
from prism_gen.families.family import Family, no_dynamic_smem
from prism_gen.rope import Bands
from prism_gen.spec import KernelSpec, Struct


class PoolProblem(Struct, frozen=True, kw_only=True):
    """block_size: tokens. high_dims, low_dims: dims of each band, rising; they may overlap."""

    dtype: str
    head_dim: int
    block_size: int
    high_dims: tuple[int, ...]
    low_dims: tuple[int, ...]

    def label(self) -> str:
        """E.g. bf16-d128-b64-h64-l96."""
        return f"{self.dtype}-d{self.head_dim}-b{self.block_size}-h{len(self.high_dims)}-l{len(self.low_dims)}"


class PoolSchedule(Struct, frozen=True, kw_only=True):
    """threads: per CTA."""

    threads: int


def _context(spec: KernelSpec) -> dict[str, Any]:
    problem: PoolProblem = spec.problem
    schedule: PoolSchedule = spec.schedule
    split = Bands(problem.high_dims, problem.low_dims)
    return {
        "element": dtype(problem.dtype).element,
        "head_dim": problem.head_dim,
        "block_size": problem.block_size,
        "high_chunks": list(split.high_chunks),
        "low_chunks": list(split.low_chunks),
        "threads": schedule.threads,
    }


POOL = Family(
    name="pool",
    problem=PoolProblem,
    schedule=PoolSchedule,
    template="pool/pool.cu.jinja",
    context=_context,
    dynamic_smem_bytes=no_dynamic_smem,
    tensor_cores=False,
)
