"""The table of schedules: a row *is* support for a head dim and block size.

Owns which problems have a kernel and how each is tiled. Must not render or compile.
"""

from __future__ import annotations

from typing import NamedTuple

from prism_gen.errors import UnsupportedError
from prism_gen.families import AttendSchedule, PoolSchedule, RotateSchedule, SelectSchedule
from prism_gen.spec import KernelSpec, Problem, Struct

# Both two-byte types run the same code at the same tile sizes.
TWO_BYTE_DTYPES = ("bf16", "fp16")

Facts = dict[str, tuple[int | str, ...]]


class Row(NamedTuple):
    """One schedule. facts: the values of each Problem field for which this row is support."""

    family: str
    arch: str
    facts: Facts
    schedule: Struct


def _pool(head_dim: int, *, threads: int, in_flight: int, min_ctas: int) -> Row:
    schedule = PoolSchedule(threads=threads, in_flight=in_flight, min_ctas=min_ctas)
    return Row("pool", "sm90", {"dtype": TWO_BYTE_DTYPES, "head_dim": (head_dim,)}, schedule)


def _rotate(head_dim: int, *, threads: int, min_ctas: int) -> Row:
    schedule = RotateSchedule(threads=threads, in_flight=1, min_ctas=min_ctas)
    return Row("rotate", "sm90", {"dtype": TWO_BYTE_DTYPES, "head_dim": (head_dim,)}, schedule)


def _select(head_dim: int, tile_rows: int, threads: int, cluster: int) -> Row:
    schedule = SelectSchedule(tile_rows=tile_rows, threads=threads, cluster=cluster)
    return Row("select", "sm90", {"head_dim": (head_dim,)}, schedule)


def _attend(head_dim: int, block_size_q: int, block_size_k: int, *, tile_n: int, kv_stages: int) -> Row:
    facts: Facts = {
        "dtype": TWO_BYTE_DTYPES,
        "head_dim": (head_dim,),
        "block_size_q": (block_size_q,),
        "block_size_k": (block_size_k,),
    }
    # One list a tile leaves registers for Q; two lists are skipped through more often than multiplied.
    schedule = AttendSchedule(tile_m=128, tile_n=tile_n, kv_stages=kv_stages, q_in_registers=block_size_q == 128)
    return Row("attend", "sm90", facts, schedule)


ROWS: tuple[Row, ...] = (
    # threads: 16 units (8 of head_dim 192 and 256) of head_dim / 8 threads; 8 loads in flight take 64 registers.
    _pool(64, threads=256, in_flight=8, min_ctas=4),
    _pool(96, threads=192, in_flight=8, min_ctas=4),
    _pool(128, threads=256, in_flight=8, min_ctas=4),
    _pool(192, threads=192, in_flight=8, min_ctas=4),
    _pool(256, threads=256, in_flight=8, min_ctas=4),
    # A token under way and one being rotated take 80 registers with the sums: 768 threads on an SM.
    _rotate(64, threads=256, min_ctas=3),
    _rotate(96, threads=192, min_ctas=4),
    _rotate(128, threads=256, min_ctas=3),
    _rotate(192, threads=192, min_ctas=4),
    _rotate(256, threads=256, min_ctas=3),
    # 64 rows read k_mean together, and one warp of 8 CTAs takes one row; two CTAs share an SM.
    _select(64, tile_rows=64, threads=256, cluster=8),
    _select(128, tile_rows=64, threads=256, cluster=8),
    # head_dim 128: the slots fill shared memory (160 KiB beside 64 KiB of Q). head_dim 64: 128 KiB is plenty.
    _attend(64, 128, 128, tile_n=128, kv_stages=8),
    _attend(64, 128, 64, tile_n=128, kv_stages=8),
    _attend(64, 64, 64, tile_n=64, kv_stages=12),
    _attend(128, 128, 128, tile_n=128, kv_stages=5),
    _attend(128, 128, 64, tile_n=128, kv_stages=5),
    _attend(128, 64, 64, tile_n=64, kv_stages=10),
)


def _available(rows: list[Row]) -> str:
    """The supported combinations, one line a row, without repeats."""
    lines = dict.fromkeys(
        f"{row.arch}: " + ", ".join(f"{name} {'|'.join(map(str, values))}" for name, values in row.facts.items())
        for row in rows
    )
    return "\n             ".join(lines)


def kernel_spec(family: str, arch: str, problem: Problem) -> KernelSpec:
    """The spec that computes `problem` on `arch`, with the schedule of its row.

    Raises: UnsupportedError listing what exists, if no row serves it.
    """
    rows = [row for row in ROWS if row.family == family]
    for row in rows:
        if row.arch == arch and all(getattr(problem, name) in values for name, values in row.facts.items()):
            return KernelSpec(family=family, arch=arch, problem=problem, schedule=row.schedule)
    raise UnsupportedError(
        f"no {family} schedule for {arch}/{problem.label()}",
        exists=_available(rows),
        fix="choose one of these, or add a row to prism_gen/schedules.py",
    )
