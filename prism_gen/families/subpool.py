"""subpool: fp16 means of the sub-blocks of q and k (method.md, The subblock estimator).

Owns its Problem, Schedule and template context. Sub-block sizes are run-time values here: one kernel serves all. Must
not choose a schedule (schedules.py does).
"""

from __future__ import annotations

from typing import Any

from prism_gen.dtypes import dtype
from prism_gen.families.family import Family, no_dynamic_smem
from prism_gen.spec import KernelSpec, Struct


class SubpoolProblem(Struct, frozen=True, kw_only=True):
    """dtype: of q and k; means are always fp16."""

    dtype: str
    head_dim: int

    def label(self) -> str:
        """E.g. bf16-d128."""
        return f"{self.dtype}-d{self.head_dim}"


class SubpoolSchedule(Struct, frozen=True, kw_only=True):
    """threads: per CTA, a multiple of head_dim / 8."""

    threads: int


def _context(spec: KernelSpec) -> dict[str, Any]:
    problem: SubpoolProblem = spec.problem
    schedule: SubpoolSchedule = spec.schedule
    return {
        "element": dtype(problem.dtype).element,
        "head_dim": problem.head_dim,
        "threads": schedule.threads,
    }


SUBPOOL = Family(
    name="subpool",
    problem=SubpoolProblem,
    schedule=SubpoolSchedule,
    template="subpool/subpool.cu.jinja",
    context=_context,
    dynamic_smem_bytes=no_dynamic_smem,
    tensor_cores=False,
)
