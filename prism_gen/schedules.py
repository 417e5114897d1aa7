"""The table of schedules: a row *is* support for a head dim and block size.

Owns which problems have a kernel and how each is tiled. Must not render or compile.
"""

from __future__ import annotations

from typing import NamedTuple

from prism_gen.errors import UnsupportedError
from prism_gen.families import (
    AttendSchedule,
    PoolSchedule,
    RotateSchedule,
    ScoreSchedule,
    SelectSchedule,
    SelectShape,
    SubpoolSchedule,
)
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


class Lists(NamedTuple):
    """What the block lists of an attend row may be. Block sizes in tokens; heads: q heads that share a list."""

    block_sizes_q: tuple[int, ...]
    block_sizes_k: tuple[int, ...]
    heads: tuple[int, ...] = (1,)


def _pool(head_dim: int, *, threads: int, in_flight: int, min_ctas: int) -> Row:
    schedule = PoolSchedule(threads=threads, in_flight=in_flight, min_ctas=min_ctas)
    return Row("pool", "sm90", {"dtype": TWO_BYTE_DTYPES, "head_dim": (head_dim,)}, schedule)


def _rotate(head_dim: int, *, threads: int, min_ctas: int) -> Row:
    schedule = RotateSchedule(threads=threads, in_flight=1, min_ctas=min_ctas)
    return Row("rotate", "sm90", {"dtype": TWO_BYTE_DTYPES, "head_dim": (head_dim,)}, schedule)


def _select(head_dim: int) -> Row:
    def shape(words: int, *, rows: int, cluster: int, ctas_per_sm: int, prepared: bool = False) -> SelectShape:
        return SelectShape(
            words=words, tile_rows=rows, threads=256, cluster=cluster, ctas_per_sm=ctas_per_sm, prepared=prepared
        )

    schedule = SelectSchedule(
        # Short rows: two CTAs for 16 of them while the GPU is not full, then no cluster to wait for. Rows of more than
        # 512 blocks take the kernels for long rows: scores computed anew are faster there (docs/performance.md).
        plain=(
            shape(4, rows=16, cluster=2, ctas_per_sm=2),
            shape(16, rows=16, cluster=1, ctas_per_sm=4),
        ),
        # Where nothing is prepared the clusters are plain's: energies are added up in their order, and both kernels
        # must give the same bits (those for long rows scale keys by head, and may round otherwise). 256 words: four
        # rows fill shared memory.
        head=(
            shape(4, rows=16, cluster=2, ctas_per_sm=2),
            shape(16, rows=16, cluster=1, ctas_per_sm=2),
            shape(32, rows=16, cluster=2, ctas_per_sm=2, prepared=True),
            shape(64, rows=16, cluster=2, ctas_per_sm=2, prepared=True),
            shape(256, rows=16, cluster=4, ctas_per_sm=1, prepared=True),
        ),
        # 16 rows in a CTA: the heads of a group lie in one.
        group=(
            shape(16, rows=16, cluster=1, ctas_per_sm=2),
            shape(32, rows=64, cluster=4, ctas_per_sm=1, prepared=True),
            shape(64, rows=64, cluster=4, ctas_per_sm=1, prepared=True),
        ),
        scratch=shape(64, rows=16, cluster=1, ctas_per_sm=2),
        group_scratch=shape(64, rows=64, cluster=1, ctas_per_sm=1),  # up to 64 heads
    )
    return Row("select", "sm90", {"head_dim": (head_dim,)}, schedule)


def _subpool(head_dim: int, *, threads: int) -> Row:
    facts: Facts = {"dtype": TWO_BYTE_DTYPES, "head_dim": (head_dim,)}
    return Row("subpool", "sm90", facts, SubpoolSchedule(threads=threads))


def _score(head_dim: int, *, warp_groups: int, k_stages: int) -> Row:
    facts: Facts = {
        "head_dim": (head_dim,),
        "rows_per_block": (2, 4, 8, 16, 32),  # of blocks of 32 to 128 tokens, in sub-blocks of 4 to 16
        "columns_per_block": (4, 8, 16, 32),
    }
    return Row("score", "sm90", facts, ScoreSchedule(warp_groups=warp_groups, k_stages=k_stages))


def _attend(head_dim: int, lists: Lists, *, tile_n: int, kv_stages: int, **others: int) -> Row:
    """others: fields of AttendSchedule that differ from these defaults."""
    facts: Facts = {
        "dtype": TWO_BYTE_DTYPES,
        "head_dim": (head_dim,),
        "block_size_q": lists.block_sizes_q,
        "block_size_k": lists.block_sizes_k,
        "heads_per_list": lists.heads,
    }
    defaults = {"tile_m": 128, "q_stages": 2, "cluster": 1, "teams": 1}
    schedule = AttendSchedule(tile_n=tile_n, kv_stages=kv_stages, **{**defaults, **others})
    return Row("attend", "sm90", facts, schedule)


# A tile of 128 rows holds one query block; or two neighbours whose lists are merged (a step is then one block), where
# tiles of 64 rows would wait for L2;
WHOLE = Lists((128,), (128, 64))
HALF = Lists((64,), (64,))
# or, where heads share a list, the positions of a block that 128 rows have room for, beside tiles of the same list.
PAIR = Lists((64, 128), (128, 64), (2,))  # 64 positions
SHORT = Lists((32,), (128, 64), tuple(range(3, 17)))  # 32 positions of 3 and 4 heads, down to 8 of 9 to 16
LONG = Lists((64, 128), (128, 64), tuple(range(3, 17)))

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
    _select(64),
    _select(96),
    _select(128),
    _select(192),
    _select(256),
    _subpool(64, threads=256),
    _subpool(96, threads=192),
    _subpool(128, threads=256),
    _subpool(192, threads=192),
    _subpool(256, threads=256),
    # Four warp groups fill the registers, k_stages shared memory or what hides its latency. 192 and 256: three groups
    # leave room for three tiles, and for two.
    _score(64, warp_groups=4, k_stages=8),
    _score(96, warp_groups=4, k_stages=7),
    _score(128, warp_groups=4, k_stages=5),
    _score(192, warp_groups=3, k_stages=3),
    _score(256, warp_groups=3, k_stages=2),
    # kv_stages fill shared memory beside Q, or hold four steps. 64: exponentials take as long as products, so two warps
    # a scheduler leave both idle; halves of a step leave registers for a second team. 192 and 256: the accumulators
    # leave registers for 64 keys; at 256 a second Q tile would leave three slots, too few to load ahead. LONG: two CTAs
    # read K and V once.
    _attend(64, WHOLE, tile_n=128, kv_stages=5, teams=2),
    _attend(64, HALF, tile_m=64, tile_n=128, kv_stages=5, teams=2),
    _attend(64, PAIR, tile_n=128, kv_stages=5, teams=2),
    _attend(64, SHORT, tile_n=128, kv_stages=5, teams=2),
    _attend(64, LONG, cluster=2, tile_n=128, kv_stages=5, teams=2),
    _attend(96, WHOLE, tile_n=128, kv_stages=7),
    _attend(96, HALF, tile_n=64, kv_stages=14),
    _attend(96, PAIR, tile_n=128, kv_stages=7),
    _attend(96, SHORT, tile_n=128, kv_stages=7),
    _attend(96, LONG, cluster=2, tile_n=128, kv_stages=7),
    _attend(128, WHOLE, tile_n=128, kv_stages=5),
    _attend(128, HALF, tile_n=64, kv_stages=10),
    _attend(128, PAIR, tile_n=128, kv_stages=5),
    _attend(128, SHORT, tile_n=128, kv_stages=5),
    _attend(128, LONG, cluster=2, tile_n=128, kv_stages=5),
    _attend(192, WHOLE, tile_n=64, kv_stages=5),
    _attend(192, HALF, tile_n=64, kv_stages=5),
    _attend(192, PAIR, tile_n=64, kv_stages=5),
    _attend(192, SHORT, tile_n=64, kv_stages=5),
    _attend(192, LONG, cluster=2, tile_n=64, kv_stages=5),
    _attend(256, WHOLE, tile_n=64, kv_stages=5, q_stages=1),
    _attend(256, HALF, tile_n=64, kv_stages=5, q_stages=1),
    _attend(256, PAIR, tile_n=64, kv_stages=5, q_stages=1),
    _attend(256, SHORT, tile_n=64, kv_stages=5, q_stages=1),
    _attend(256, LONG, cluster=2, tile_n=64, kv_stages=5, q_stages=1),
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
