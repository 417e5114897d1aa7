"""Figures of one bench run and their file: every run kept, with the ceilings and the machine they were taken on.

Owns the schema and what a figure is compared by. Pure: must not import torch or time anything.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from prism_gen.errors import ConfigError
from prism_gen.files import write_atomic
from prism_gen.spec import Struct

BENCH_SCHEMA_VERSION = 1
OURS = "prism-gen"

Stage = Literal["selection", "attend", "layer"]


class Figure(Struct, frozen=True, kw_only=True):
    """One thing timed. who: OURS or a peer. label: of the attend problem. ms: every run, in order; none where skipped.

    density: selected over visible blocks; 1 for dense attention. list_densities: the same of each block list, of a
    layer's figure. flops: done, on the selected blocks; of selection, those of work.py. bytes_moved: of inputs and
    outputs, once. skipped: why a peer was not run, "" where it was. distance: of a peer's output to ours on the same
    blocks, norm of the difference over norm; 0: nothing was compared.
    """

    stage: Stage
    who: str
    label: str
    seqlen: int
    density: float
    heads: tuple[int, int]
    ms: tuple[float, ...]
    list_densities: tuple[float, ...] = ()
    flops: float = 0.0
    bytes_moved: float = 0.0
    skipped: str = ""
    distance: float = 0.0

    @property
    def key(self) -> tuple[object, ...]:
        """What makes two figures of two runs the same measurement; densities to two digits, as seeds differ."""
        return self.stage, self.who, self.label, self.seqlen, round(self.density, 2), self.heads

    @property
    def median_ms(self) -> float:
        """Of all runs."""
        return statistics.median(self.ms)

    @property
    def quartiles_ms(self) -> tuple[float, float]:
        """Lower and upper: an outlier does not move them."""
        low, _, high = statistics.quantiles(self.ms, n=4)
        return low, high

    @property
    def tflops(self) -> float:
        """On the selected blocks."""
        return self.flops / self.median_ms / 1e9

    @property
    def tbps(self) -> float:
        """Terabytes a second."""
        return self.bytes_moved / self.median_ms / 1e9


class Ceilings(Struct, frozen=True, kw_only=True):
    """What this chip gave in the same process: a bf16 matrix product, TFLOP/s, and a copy, TB/s read and written."""

    tflops: float
    tbps: float


class BenchRun(Struct, frozen=True, kw_only=True):
    """One run. machine: as runtime/environment.py writes it. data: the SHA-256 of the file that gave q, k, v; "" where
    they are random. complete: False where it was interrupted.
    """

    schema_version: int
    machine: dict[str, Any]
    data: str = ""
    ceilings: Ceilings
    figures: tuple[Figure, ...]
    complete: bool = True

    def timed(self, stage: Stage | None = None) -> list[Figure]:
        """The figures that were taken, of one stage or of all."""
        return [figure for figure in self.figures if not figure.skipped and stage in (None, figure.stage)]


def write_run(path: Path, run: BenchRun) -> None:
    """Indented JSON with sorted keys."""
    write_atomic(path, msgspec.json.format(msgspec.json.encode(run, order="sorted"), indent=1) + b"\n")


def read_run(path: Path) -> BenchRun:
    """Raises: ConfigError where the file is missing, damaged or of another schema."""
    fix = "give a file that `bench --json` wrote"
    try:
        run = msgspec.json.decode(path.read_bytes(), type=BenchRun)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror or error})", fix=fix) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} holds no bench run: {error}", fix=fix) from None
    if run.schema_version != BENCH_SCHEMA_VERSION:
        raise ConfigError(
            f"{path} has schema_version {run.schema_version}",
            exists=f"this prism_gen reads {BENCH_SCHEMA_VERSION}",
            fix="run bench again",
        )
    return run


def fastest_dense(figures: Sequence[Figure], seqlen: int, heads: tuple[int, int]) -> Figure | None:
    """The fastest dense attention of a length among the attend figures."""
    dense = [f for f in figures if f.stage == "attend" and f.density == 1.0 and (f.seqlen, f.heads) == (seqlen, heads)]
    return min(dense, key=lambda figure: figure.median_ms, default=None)
