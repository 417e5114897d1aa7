"""select: calibrated block scores, softmax and the cumulative cut-off (method.md steps 3 to 5).

Owns its Problem, Schedule and template context. Block sizes are run-time values here, so that one kernel serves
every block size whose bands are the same. Must not choose a schedule (schedules.py does).
"""

from __future__ import annotations

from typing import Any

from prism_gen.families.family import Family, no_dynamic_smem
from prism_gen.rope import Bands
from prism_gen.spec import KernelSpec, Struct


class SelectProblem(Struct, frozen=True, kw_only=True):
    """high_dims, low_dims: dims of each band, rising; they may overlap. Means are always fp32."""

    head_dim: int
    high_dims: tuple[int, ...]
    low_dims: tuple[int, ...]

    def label(self) -> str:
        """E.g. d128-h64-l96."""
        return f"d{self.head_dim}-h{len(self.high_dims)}-l{len(self.low_dims)}"


class SelectShape(Struct, frozen=True, kw_only=True):
    """How rows of up to 32 * words key blocks are worked on.

    tile_rows: rows per cluster. threads: per CTA. cluster: CTAs that share the work on a tile: 1, 2, 4 or 8.
    ctas_per_sm: that registers must allow. prepared: means are split into halves once, by a kernel of its own before.
    """

    words: int
    tile_rows: int
    threads: int
    cluster: int
    ctas_per_sm: int
    prepared: bool = False

    def type_name(self) -> str:
        """The C++ type."""
        numbers = (self.words, self.tile_rows, self.threads, self.cluster, self.ctas_per_sm)
        return f"prism::SelectShape<{', '.join(map(str, numbers))}, {str(self.prepared).lower()}>"


class SelectSchedule(Struct, frozen=True, kw_only=True):
    """Shapes by rising words: lists of one q head under the paper's rules, under any rules, and lists of a group.

    Under the paper's rules, rows longer than every plain shape's take the kernels for long rows. scratch,
    group_scratch: for rows longer than all head and group shapes, and for lists of more heads, cluster 1.
    """

    plain: tuple[SelectShape, ...]
    head: tuple[SelectShape, ...]
    group: tuple[SelectShape, ...]
    scratch: SelectShape
    group_scratch: SelectShape


def _context(spec: KernelSpec) -> dict[str, Any]:
    problem: SelectProblem = spec.problem
    schedule: SelectSchedule = spec.schedule
    split = Bands(problem.high_dims, problem.low_dims)
    return {
        "head_dim": problem.head_dim,
        "high_chunks": list(split.high_chunks),
        "low_chunks": list(split.low_chunks),
        "plain_shapes": ", ".join(shape.type_name() for shape in schedule.plain),
        "long_least_words": schedule.plain[-1].words,
        "head_shapes": ", ".join(shape.type_name() for shape in schedule.head),
        "group_shapes": ", ".join(shape.type_name() for shape in schedule.group),
        "scratch_shape": schedule.scratch.type_name(),
        "group_scratch_shape": schedule.group_scratch.type_name(),
    }


SELECT = Family(
    name="select",
    problem=SelectProblem,
    schedule=SelectSchedule,
    template="select/select.cu.jinja",
    context=_context,
    dynamic_smem_bytes=no_dynamic_smem,
    tensor_cores=False,
)
