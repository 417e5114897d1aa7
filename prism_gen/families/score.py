"""score: attention among sub-block means, and the key blocks it chooses (method.md, The subblock estimator, step 5).

Owns its Problem, Schedule, template context and shared-memory budget. Sub-block sizes are run-time values here, so that
one kernel serves 8x8 in blocks of 64 and 16x16 in blocks of 128. Must not choose a schedule (schedules.py does).
"""

from __future__ import annotations

from typing import Any

from prism_gen.arch import arch
from prism_gen.errors import UnsupportedError
from prism_gen.families.family import Family
from prism_gen.spec import KernelSpec, Struct

MEAN_BYTES = 2  # fp16, whatever the dtype of q and k
ROWS_PER_WARP_GROUP = 64  # M of wgmma (templates/score/sm90/traits.cuh)
TILE_COLUMNS = 128  # sub-columns of one tile, in whose order k's means lie in memory (templates/score/params.h)
METADATA_BYTES = 3072  # barriers, and factors of up to 256 sub-rows of two tiles, rounded up


class ScoreProblem(Struct, frozen=True, kw_only=True):
    """rows_per_block: sub-blocks in a query block. columns_per_block: in a key block."""

    head_dim: int
    rows_per_block: int
    columns_per_block: int

    def label(self) -> str:
        """E.g. d128-r16-c8."""
        return f"d{self.head_dim}-r{self.rows_per_block}-c{self.columns_per_block}"


class ScoreSchedule(Struct, frozen=True, kw_only=True):
    """warp_groups: of 64 sub-rows each that share a tile of sub-columns. k_stages: such tiles in shared memory."""

    warp_groups: int
    k_stages: int


def smem_bytes(spec: KernelSpec) -> int:
    """Shared memory of one CTA: the means of its sub-rows, the ring of tiles, metadata. The kernel asserts it.

    Raises: UnsupportedError where it is more than the arch gives.
    """
    problem: ScoreProblem = spec.problem
    schedule: ScoreSchedule = spec.schedule
    means = schedule.warp_groups * ROWS_PER_WARP_GROUP + schedule.k_stages * TILE_COLUMNS
    total = means * problem.head_dim * MEAN_BYTES + METADATA_BYTES
    limit = arch(spec.arch).smem_limit_bytes
    if total > limit:
        raise UnsupportedError(
            f"{spec.name} needs {total} bytes of shared memory",
            exists=f"{limit} bytes on {spec.arch}",
            fix="lower k_stages or warp_groups of its row in prism_gen/schedules.py",
        )
    return total


def _context(spec: KernelSpec) -> dict[str, Any]:
    problem: ScoreProblem = spec.problem
    schedule: ScoreSchedule = spec.schedule
    return {
        "head_dim": problem.head_dim,
        "rows_per_block": problem.rows_per_block,
        "columns_per_block": problem.columns_per_block,
        "warp_groups": schedule.warp_groups,
        "k_stages": schedule.k_stages,
        "smem_bytes": smem_bytes(spec),
    }


SCORE = Family(
    name="score",
    problem=ScoreProblem,
    schedule=ScoreSchedule,
    template="score/score.cu.jinja",
    context=_context,
    dynamic_smem_bytes=smem_bytes,
    tensor_cores=True,
)
