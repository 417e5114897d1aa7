"""pool: block means of q and k, and the energies of their bands (method.md steps 1 and 3).

Owns its Problem, Schedule and template context. Block sizes are run-time values here: one kernel serves every pair of
block sizes that has the same bands. Must not choose a schedule (schedules.py does).
"""

from __future__ import annotations

from typing import Any

from prism_gen.dtypes import dtype
from prism_gen.families.family import Family, no_dynamic_smem
from prism_gen.rope import Bands
from prism_gen.spec import KernelSpec, Struct

BLOCK_SIZES = (32, 64, 128)  # tokens, that a pool kernel takes: 1, 2 or 4 granules (templates/pool/params.h)


class PoolProblem(Struct, frozen=True, kw_only=True):
    """high_dims, low_dims: dims of each band, rising; they may overlap."""

    dtype: str
    head_dim: int
    high_dims: tuple[int, ...]
    low_dims: tuple[int, ...]

    def label(self) -> str:
        """E.g. bf16-d128-h64-l96."""
        return f"{self.dtype}-d{self.head_dim}-h{len(self.high_dims)}-l{len(self.low_dims)}"


class PoolSchedule(Struct, frozen=True, kw_only=True):
    """threads: per CTA. in_flight: 16-byte loads of one thread. min_ctas: on one SM, which bounds the registers."""

    threads: int
    in_flight: int
    min_ctas: int


def _context(spec: KernelSpec) -> dict[str, Any]:
    problem: PoolProblem = spec.problem
    schedule: PoolSchedule = spec.schedule
    split = Bands(problem.high_dims, problem.low_dims)
    return {
        "element": dtype(problem.dtype).element,
        "head_dim": problem.head_dim,
        "high_chunks": list(split.high_chunks),
        "low_chunks": list(split.low_chunks),
        "threads": schedule.threads,
        "in_flight": schedule.in_flight,
        "min_ctas": schedule.min_ctas,
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
