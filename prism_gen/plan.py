"""(models, archs, tuning table) -> the sources of a bundle, before anything is compiled.

Owns which schedules a build takes, and the one digest of all that a bundle is compiled from. Must not compile.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from prism_gen.fingerprint import Source, make_source, template_digest
from prism_gen.manifest import Tuning
from prism_gen.model import ModelSpec
from prism_gen.render import render
from prism_gen.spec import KernelSpec
from prism_gen.specialize import specialize
from prism_gen.toolchain import Toolchain
from prism_gen.tuning_table import TuningTable, apply_table, encode_table


class Planned(NamedTuple):
    """What a build compiles. tuning: the manifest's record of the table; warnings: about rows that are stale."""

    sources: tuple[Source, ...]
    tuning: Tuning | None
    warnings: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Of every input of every kernel: a key for caches of compiled kernels."""
        return hashlib.sha256("".join(sorted(source.digest for source in self.sources)).encode()).hexdigest()


def plan(
    models: Sequence[ModelSpec],
    archs: Sequence[str],
    *,
    toolchain: Toolchain,
    root: Path,
    table: TuningTable | None = None,
    gpu: str | None = None,
) -> Planned:
    """The sources of every kernel that the models need, each once.

    gpu: what the bundle is for, a part of its name such as "H200"; a table of another counts for nothing. None: the
    table's. Raises: UnsupportedError, RenderError.
    """
    specs = tuple(dict.fromkeys(spec for model in models for spec in specialize(model, archs)))
    tuning: Tuning | None = None
    warnings: tuple[str, ...] = ()
    if table is not None and gpu is not None and gpu.casefold() not in table.gpu.casefold():
        warnings = (f"every kernel keeps its default schedule: the tuning is for {table.gpu}, the bundle for {gpu}",)
    elif table is not None:
        tuned = apply_table(table, specs, partial(templates_of, root=root))
        specs, warnings = tuned.specs, tuned.warnings
        tuning = Tuning(
            digest=hashlib.sha256(encode_table(table)).hexdigest(),
            gpu=table.gpu,
            driver=table.driver,
            cuda=table.cuda,
            speedups=tuned.speedups,
            crossovers=table.crossovers,
        )
    sources = tuple(make_source(spec, render(spec, root), root=root, toolchain=toolchain) for spec in specs)
    return Planned(sources, tuning, warnings)


def templates_of(spec: KernelSpec, *, root: Path) -> str:
    """Today's digest of what a family's schedules are compiled from."""
    return template_digest(spec, render(spec, root), root=root)
