"""The schedules that `tune` tries beside the default of schedules.py: one table a family.

Owns which are worth trying. A candidate may break a limit, fail a gate or be wrong: tune finds out, and says so. Must
not choose between them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import msgspec

from prism_gen.arch import arch
from prism_gen.errors import UnsupportedError
from prism_gen.families import (
    AttendSchedule,
    PoolSchedule,
    RotateSchedule,
    ScoreSchedule,
    SelectSchedule,
    SelectShape,
    SubpoolSchedule,
    score,
)
from prism_gen.families.attend import smem_bytes
from prism_gen.spec import KernelSpec

POOL_THREADS = (128, 192, 256, 384, 512)
POOL_IN_FLIGHT = (4, 8, 16)  # 16-byte loads of a thread: what hides a DRAM access, against what fits in registers
POOL_MIN_CTAS = (2, 3, 4, 6)
ROTATE_IN_FLIGHT = (1, 2)
REGISTERS = 65536  # of an SM, shared by threads * min_ctas
MIN_REGISTERS = 40  # of a pool or rotate thread: below, sums spill
ATTEND_TILE_N = (64, 96, 128, 160)  # keys of a step; 192 leaves an accumulator no registers beside 128 dims of output
ATTEND_Q_STAGES = (1, 2)
FEWER_KV_STAGES = (0, 1)  # the deepest ring that fits, and one slot less
WARP_GROUP_ROWS = 64  # M of wgmma
MIN_KV_STAGES = 4  # a K and a V tile at work and as many on their way
SUBPOOL_UNITS = (8, 16, 32)  # means of a CTA
SCORE_WARP_GROUPS = (2, 3, 4)
MIN_SCORE_K_STAGES = 2  # a tile of sub-columns at work and one on its way
SELECT_CTAS_PER_SM = (-1, 0, 1)  # beside the default of each shape


def _pool(spec: KernelSpec) -> list[Any]:
    """Threads are whole units of head_dim / 8; CTAs an SM only where their registers leave a thread enough."""
    unit = spec.problem.head_dim // 8
    return [
        PoolSchedule(threads=threads, in_flight=in_flight, min_ctas=min_ctas)
        for threads, in_flight, min_ctas in product(POOL_THREADS, POOL_IN_FLIGHT, POOL_MIN_CTAS)
        if _fits(threads, min_ctas, unit)
    ]


def _rotate(spec: KernelSpec) -> list[Any]:
    unit = spec.problem.head_dim // 8
    return [
        RotateSchedule(threads=threads, in_flight=in_flight, min_ctas=min_ctas)
        for threads, in_flight, min_ctas in product(POOL_THREADS, ROTATE_IN_FLIGHT, POOL_MIN_CTAS)
        if _fits(threads, min_ctas, unit)
    ]


def _fits(threads: int, min_ctas: int, unit_threads: int) -> bool:
    """Whole power-of-two units, and MIN_REGISTERS or more of a thread where min_ctas CTAs share an SM."""
    units, rest = divmod(threads, unit_threads)
    whole = rest == 0 and units & (units - 1) == 0
    return whole and REGISTERS // (threads * min_ctas) >= MIN_REGISTERS and threads * min_ctas >= 512


def _attend(spec: KernelSpec) -> list[Any]:
    """Steps of other widths, and the ring as deep as shared memory allows or a little less."""
    default: AttendSchedule = spec.schedule
    found = []
    for tile_n, q_stages in product(ATTEND_TILE_N, ATTEND_Q_STAGES):
        if _merges_lists(spec) and spec.problem.block_size_k % tile_n:
            continue  # a step of merged lists is one block or a part of one
        deepest = _deepest_ring(spec, tile_n, q_stages)
        for fewer in FEWER_KV_STAGES:
            if deepest - fewer >= MIN_KV_STAGES:
                changes = {"tile_n": tile_n, "q_stages": q_stages, "kv_stages": deepest - fewer}
                found.append(msgspec.structs.replace(default, **changes))
    return found


def _merges_lists(spec: KernelSpec) -> bool:
    """Whether a tile holds several query blocks, so that their lists are walked as one."""
    per_warp_group = WARP_GROUP_ROWS // spec.problem.heads_per_list
    positions = (1 << per_warp_group.bit_length() >> 1) * (spec.schedule.tile_m // WARP_GROUP_ROWS)
    return bool(positions * spec.schedule.cluster > spec.problem.block_size_q)


def _deepest_ring(spec: KernelSpec, tile_n: int, q_stages: int) -> int:
    """Most slots of tile_n tokens that shared memory has room for; 0 if none."""
    stages = 0
    while True:
        schedule = msgspec.structs.replace(spec.schedule, tile_n=tile_n, q_stages=q_stages, kv_stages=stages + 1)
        try:
            smem_bytes(msgspec.structs.replace(spec, schedule=schedule))
        except UnsupportedError:
            return stages
        stages += 1


def _select(spec: KernelSpec) -> list[Any]:
    """One more or one less CTA an SM, for each set of shapes. Clusters stay: energies are summed in their order."""
    default: SelectSchedule = spec.schedule

    def shifted(shapes: tuple[SelectShape, ...], by: int) -> tuple[SelectShape, ...]:
        return tuple(msgspec.structs.replace(shape, ctas_per_sm=max(1, shape.ctas_per_sm + by)) for shape in shapes)

    found = []
    for plain, other in product(SELECT_CTAS_PER_SM, SELECT_CTAS_PER_SM):
        changes = {"head": shifted(default.head, other), "group": shifted(default.group, other)}
        found.append(msgspec.structs.replace(default, plain=shifted(default.plain, plain), **changes))
    return found


def _subpool(spec: KernelSpec) -> list[Any]:
    unit = spec.problem.head_dim // 8
    return [SubpoolSchedule(threads=units * unit) for units in SUBPOOL_UNITS]


def _score(spec: KernelSpec) -> list[Any]:
    """Warp groups that share a tile of sub-columns, and the ring as deep as shared memory allows or a little less."""
    found = []
    for warp_groups, fewer in product(SCORE_WARP_GROUPS, FEWER_KV_STAGES):
        used = warp_groups * score.ROWS_PER_WARP_GROUP * spec.problem.head_dim * score.MEAN_BYTES + score.METADATA_BYTES
        tile = score.TILE_COLUMNS * spec.problem.head_dim * score.MEAN_BYTES
        k_stages = (arch(spec.arch).smem_limit_bytes - used) // tile - fewer
        if k_stages >= MIN_SCORE_K_STAGES:
            found.append(ScoreSchedule(warp_groups=warp_groups, k_stages=k_stages))
    return found


FAMILY_CANDIDATES: dict[str, Callable[[KernelSpec], list[Any]]] = {
    "pool": _pool,
    "rotate": _rotate,
    "select": _select,
    "attend": _attend,
    "subpool": _subpool,
    "score": _score,
}


def candidates(default: KernelSpec) -> tuple[KernelSpec, ...]:
    """The default and every other schedule worth trying for its problem, each once; the default alone for a family
    without a table.
    """
    make = FAMILY_CANDIDATES.get(default.family)
    others = [msgspec.structs.replace(default, schedule=schedule) for schedule in (make(default) if make else [])]
    return tuple(dict.fromkeys([default, *others]))
