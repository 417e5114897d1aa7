"""The table of schedules: a row *is* support for a head dim and block size.

Owns which problems have a kernel and how each is tiled. Must not render or compile.
"""

from __future__ import annotations

from typing import NamedTuple

from prism_gen.errors import UnsupportedError
from prism_gen.families import AttendSchedule, PoolSchedule, SelectSchedule, SelectShape
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


def _pool(head_dim: int, block_size: int, threads: int) -> Row:
    facts: Facts = {"dtype": TWO_BYTE_DTYPES, "head_dim": (head_dim,), "block_size": (block_size,)}
    return Row("pool", "sm90", facts, PoolSchedule(threads=threads))


def _select(head_dim: int) -> Row:
    def shape(words: int, *, rows: int, cluster: int, ctas_per_sm: int) -> SelectShape:
        return SelectShape(words=words, tile_rows=rows, threads=256, cluster=cluster, ctas_per_sm=ctas_per_sm)

    schedule = SelectSchedule(
        # Short rows: two CTAs for 16 of them while the GPU is not full, then no cluster to wait for.
        plain=(
            shape(4, rows=16, cluster=2, ctas_per_sm=4),
            shape(16, rows=16, cluster=1, ctas_per_sm=4),
            shape(32, rows=16, cluster=2, ctas_per_sm=4),
            shape(64, rows=16, cluster=2, ctas_per_sm=2),
        ),
        head=(shape(32, rows=16, cluster=2, ctas_per_sm=2), shape(64, rows=16, cluster=2, ctas_per_sm=2)),
        # 16 rows in a CTA: the heads of a group lie in one.
        group=(
            shape(16, rows=16, cluster=1, ctas_per_sm=2),
            shape(32, rows=64, cluster=4, ctas_per_sm=1),
            shape(64, rows=64, cluster=4, ctas_per_sm=1),
        ),
        scratch=shape(64, rows=16, cluster=1, ctas_per_sm=2),
    )
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
    # A CTA pools one block of one head: 256 threads hold 4 to 16 16-byte loads each in flight.
    _pool(64, 64, threads=256),
    _pool(64, 128, threads=256),
    _pool(128, 64, threads=256),
    _pool(128, 128, threads=256),
    _select(64),
    _select(128),
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
