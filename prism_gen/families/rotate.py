"""rotate: RoPE of q and k, and what pool makes of them, in one pass (method.md steps 0 and 1).

Owns its Problem, Schedule and template context. Block sizes are run-time values, as pool's. Must not choose a schedule
(schedules.py does).
"""

from __future__ import annotations

from typing import Any

from prism_gen.dtypes import dtype
from prism_gen.families.family import Family, no_dynamic_smem
from prism_gen.rope import Bands
from prism_gen.spec import KernelSpec, Struct


class RotateProblem(Struct, frozen=True, kw_only=True):
    """rotary_dim: dims that rotate, a multiple of 16. interleaved: pair p is dims (2p, 2p + 1), else half-split.

    high_dims, low_dims: dims of each band, rising; they may overlap.
    """

    dtype: str
    head_dim: int
    rotary_dim: int
    interleaved: bool
    high_dims: tuple[int, ...]
    low_dims: tuple[int, ...]

    def label(self) -> str:
        """E.g. bf16-d128-r128-half-h64-l96."""
        layout = "pairs" if self.interleaved else "half"
        bands = f"h{len(self.high_dims)}-l{len(self.low_dims)}"
        return f"{self.dtype}-d{self.head_dim}-r{self.rotary_dim}-{layout}-{bands}"


class RotateSchedule(Struct, frozen=True, kw_only=True):
    """threads: per CTA. in_flight: tokens that a thread loads while it rotates as many. min_ctas: on one SM."""

    threads: int
    in_flight: int
    min_ctas: int


def _context(spec: KernelSpec) -> dict[str, Any]:
    problem: RotateProblem = spec.problem
    schedule: RotateSchedule = spec.schedule
    split = Bands(problem.high_dims, problem.low_dims)
    return {
        "element": dtype(problem.dtype).element,
        "head_dim": problem.head_dim,
        "rotary_dim": problem.rotary_dim,
        "interleaved": "true" if problem.interleaved else "false",
        "high_chunks": list(split.high_chunks),
        "low_chunks": list(split.low_chunks),
        "threads": schedule.threads,
        "in_flight": schedule.in_flight,
        "min_ctas": schedule.min_ctas,
    }


ROTATE = Family(
    name="rotate",
    problem=RotateProblem,
    schedule=RotateSchedule,
    template="rotate/rotate.cu.jinja",
    context=_context,
    dynamic_smem_bytes=no_dynamic_smem,
    tensor_cores=False,
)
