"""tuning.json: which schedules were measured to be best on one GPU, with every timing behind that.

Owns the schema, its reader and encoder, and the rule by which a build takes a row or leaves it. Must not time (tune/
does) or render.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from prism_gen.crossover import Crossover
from prism_gen.errors import BundleError, ConfigError
from prism_gen.families import decode_spec
from prism_gen.spec import KernelSpec, Struct

TABLE_SCHEMA_VERSION = 1

# right: verified and timed. wrong: verified and refuted. refused: a limit, the compiler or a gate said no. crashed: the
# process died or hung on it.
Outcome = Literal["right", "wrong", "refused", "crashed"]


class Shape(Struct, frozen=True, kw_only=True):
    """One problem of the grid: tokens of q and of k, share of the causal blocks selected, sequences."""

    seqlen: int
    density: float = 1.0
    batch: int = 1

    @property
    def label(self) -> str:
        """E.g. n32768-density0.1-b1."""
        return f"n{self.seqlen}-density{self.density:g}-b{self.batch}"


class Measured(Struct, frozen=True, kw_only=True):
    """Every run of one candidate on one shape, milliseconds, in the order taken. stage: of the race."""

    stage: str
    shape: Shape
    ms: tuple[float, ...]


class Candidate(Struct, frozen=True, kw_only=True):
    """One schedule that was tried. key: of its KernelSpec. reason: of any outcome but "right"."""

    schedule: Any
    key: str
    outcome: Outcome
    reason: str = ""
    measured: tuple[Measured, ...] = ()


class TunedKernel(Struct, frozen=True, kw_only=True):
    """One problem and the race of its schedules.

    templates: digest of the sources they came from. default, best: keys; the default's schedule is the row of
    schedules.py. speedup: geometric mean over the shapes of default / best, speedups: by shape; 1 where the default is
    best. complete: False where the budget ended first, and then the default stands.
    """

    family: str
    arch: str
    problem: Any
    templates: str
    default: str
    best: str
    speedup: float
    speedups: dict[str, float]
    complete: bool
    candidates: tuple[Candidate, ...]

    def schedule(self, key: str) -> Any:
        """The schedule of one candidate."""
        return next(candidate.schedule for candidate in self.candidates if candidate.key == key)

    def spec(self, key: str) -> KernelSpec:
        """One candidate as a KernelSpec, typed. Raises: BundleError where problem or schedule is not the family's."""
        fields = {"problem": self.problem, "schedule": self.schedule(key)}
        return decode_spec({"family": self.family, "arch": self.arch, **msgspec.to_builtins(fields)})


class TuningTable(Struct, frozen=True, kw_only=True):
    """What one GPU taught. heads: (q, kv) of the model; toolchain: of the candidates' bundle."""

    schema_version: int
    generator: str
    created: str
    gpu: str
    driver: str
    cuda: str
    heads: tuple[int, int]
    toolchain: dict[str, str]
    kernels: tuple[TunedKernel, ...]
    crossovers: tuple[Crossover, ...] = ()


class Tuned(NamedTuple):
    """What a build takes of a table: the specs to compile, the speedup of each that changed by key, and warnings."""

    specs: tuple[KernelSpec, ...]
    speedups: dict[str, float]
    warnings: tuple[str, ...]


def apply_table(table: TuningTable, specs: Sequence[KernelSpec], templates_of: Callable[[KernelSpec], str]) -> Tuned:
    """The specs with the table's schedules, where a row is for the same problem and nothing beneath it has changed.

    templates_of: today's template digest of a spec's family. A stale row is left, with a warning.
    """
    chosen, speedups, warnings = [], {}, []
    for spec in specs:
        rows = [row for row in table.kernels if row.family == spec.family]
        row = next((row for row in rows if row.problem == spec.problem), None)
        if row is None:
            chosen.append(spec)
            continue
        if reason := _stale(row, spec, templates_of(spec)):
            warnings.append(f"{spec.name} keeps its default schedule: the tuning for {table.gpu} is stale, {reason}")
            chosen.append(spec)
            continue
        best = row.spec(row.best)
        chosen.append(best)
        if best != spec:
            speedups[best.key] = row.speedup
    return Tuned(tuple(chosen), speedups, tuple(warnings))


def _stale(row: TunedKernel, spec: KernelSpec, templates: str) -> str:
    """Why a row does not count any more, "" if it does."""
    if row.arch != spec.arch:
        return f"it was tuned on {row.arch}"
    if row.templates != templates:
        return "its templates or flags have changed"
    if row.default != spec.key:
        return "its default schedule has changed"
    return ""


def encode_table(table: TuningTable) -> bytes:
    """Indented JSON with sorted keys and a final newline: equal tables give equal bytes."""
    return msgspec.json.format(msgspec.json.encode(table, order="sorted"), indent=1) + b"\n"


def read_table(path: Path) -> TuningTable:
    """The table in a file, every row's specs and keys checked. Raises: ConfigError naming what is wrong."""
    fix = "run `python -m prism_gen tune` again, or give another file"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"tuning file {path} cannot be read ({error.strerror or error})", fix=fix) from None
    try:
        table = msgspec.json.decode(data, type=TuningTable)
        if table.schema_version != TABLE_SCHEMA_VERSION:
            raise ConfigError(
                f"{path} has schema_version {table.schema_version}, written by prism_gen {table.generator}",
                exists=f"this prism_gen reads schema_version {TABLE_SCHEMA_VERSION}",
                fix=fix,
            )
        return msgspec.structs.replace(table, kernels=tuple(_typed(row) for row in table.kernels))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a tuning table: {error}", fix=fix) from None
    except BundleError as error:
        raise ConfigError(f"{path}: {error.asked}", exists=error.exists, fix=fix) from None


def _typed(row: TunedKernel) -> TunedKernel:
    """The row with a typed problem and schedules. Raises: BundleError where a key is not that of its schedule."""
    specs = {candidate.key: row.spec(candidate.key) for candidate in row.candidates}
    for key, spec in specs.items():
        if spec.key != key:
            raise BundleError(f"key {key} is not that of its {row.family} schedule")
    if not {row.best, row.default} <= specs.keys():
        raise BundleError(f"the best of a {row.family} is none of its candidates")
    return msgspec.structs.replace(
        row,
        problem=specs[row.default].problem,
        candidates=tuple(msgspec.structs.replace(c, schedule=specs[c.key].schedule) for c in row.candidates),
    )


def merge_tables(tables: Sequence[TuningTable]) -> TuningTable:
    """The rows of several shards in one table. Raises: ConfigError where they are of different GPUs or overlap.

    A part without rows, of more shards than kernels, says nothing.
    """
    first, *others = [table for table in tables if table.kernels] or tables[:1]
    for table in others:
        for name in ("gpu", "cuda", "driver", "heads", "generator"):
            if getattr(table, name) != getattr(first, name):
                raise ConfigError(
                    f"the parts differ in {name}: {getattr(first, name)} and {getattr(table, name)}",
                    fix="merge parts of one run: the same model on the same kind of machine",
                )
    rows = [row for table in tables for row in table.kernels]
    keys = [row.default for row in rows]
    for row in rows:
        if keys.count(row.default) > 1:
            raise ConfigError(
                f"two parts hold {row.spec(row.default).name}",
                fix="give each shard its own --shard i/n, and merge each once",
            )
    return msgspec.structs.replace(
        first,
        created=max(table.created for table in tables),
        kernels=tuple(sorted(rows, key=lambda row: (row.family, row.default))),
        crossovers=tuple(crossing for table in tables for crossing in table.crossovers),
    )
