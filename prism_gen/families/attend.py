"""attend: attention over the selected blocks (method.md step 6).

Owns its Problem, Schedule, template context and shared-memory budget. Must not choose a schedule (schedules.py does).
"""

from __future__ import annotations

from typing import Any

from prism_gen.arch import arch
from prism_gen.dtypes import dtype
from prism_gen.errors import UnsupportedError
from prism_gen.families.family import Family
from prism_gen.spec import KernelSpec, Struct

# Barriers, tile coordinates and block lists in flight of one team: 0.7 KB at 14 slots, rounded up.
METADATA_BYTES = 1024


class AttendProblem(Struct, frozen=True, kw_only=True):
    """block_size_q, block_size_k: sparsity granule, tokens.

    heads_per_list: q heads of a KV group that share one list and are packed into a tile; 1 is a list per q head, and
    then one kernel serves every group size.
    """

    dtype: str
    head_dim: int
    block_size_q: int
    block_size_k: int
    heads_per_list: int = 1

    def label(self) -> str:
        """E.g. bf16-d128-b128x64, or bf16-d128-b32x64-g4 where four heads share a list."""
        shared = f"-g{self.heads_per_list}" if self.heads_per_list > 1 else ""
        return f"{self.dtype}-d{self.head_dim}-b{self.block_size_q}x{self.block_size_k}{shared}"


class AttendSchedule(Struct, frozen=True, kw_only=True):
    """How one attend kernel is tiled.

    tile_m: query rows per team, positions times heads_per_list. tile_n: keys per step: several blocks, one, or a part
    of one. kv_stages: shared-memory slots, each one K or one V tile of tile_n tokens; an odd number where a step has
    two halves. q_stages: Q tiles; with two, the end of a tile overlaps the start of the next. cluster: CTAs whose tiles
    lie side by side on one list and that copy K and V for each other (multicast). teams: halves of a CTA that work on
    tiles of their own, each with all of the slots above; with two, one computes where the other would leave an SM idle.
    """

    tile_m: int
    tile_n: int
    kv_stages: int
    q_stages: int
    cluster: int
    teams: int


def smem_bytes(spec: KernelSpec) -> int:
    """Shared memory of one CTA: each team's Q tiles (O leaves through them), K/V ring, metadata. The kernel asserts it.

    Raises: UnsupportedError where it is more than the arch gives.
    """
    problem: AttendProblem = spec.problem
    schedule: AttendSchedule = spec.schedule
    row_bytes = problem.head_dim * dtype(problem.dtype).num_bytes
    kv_ring_bytes = schedule.kv_stages * schedule.tile_n * row_bytes
    total = schedule.teams * (schedule.q_stages * schedule.tile_m * row_bytes + kv_ring_bytes + METADATA_BYTES)
    limit = arch(spec.arch).smem_limit_bytes
    if total > limit:
        raise UnsupportedError(
            f"{spec.name} needs {total} bytes of shared memory",
            exists=f"{limit} bytes on {spec.arch}",
            fix="lower teams, kv_stages, q_stages or tile_n of its row in prism_gen/schedules.py",
        )
    return total


def _context(spec: KernelSpec) -> dict[str, Any]:
    problem: AttendProblem = spec.problem
    schedule: AttendSchedule = spec.schedule
    return {
        "element": dtype(problem.dtype).element,
        "head_dim": problem.head_dim,
        "block_size_q": problem.block_size_q,
        "block_size_k": problem.block_size_k,
        "heads_per_list": problem.heads_per_list,
        "tile_m": schedule.tile_m,
        "tile_n": schedule.tile_n,
        "kv_stages": schedule.kv_stages,
        "q_stages": schedule.q_stages,
        "cluster": schedule.cluster,
        "teams": schedule.teams,
        "smem_bytes": smem_bytes(spec),
    }


ATTEND = Family(
    name="attend",
    problem=AttendProblem,
    schedule=AttendSchedule,
    template="attend/attend.cu.jinja",
    context=_context,
    dynamic_smem_bytes=smem_bytes,
    tensor_cores=True,
)
