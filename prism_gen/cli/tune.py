"""`prism_gen tune` and `prism_gen merge`: measured schedules for a GPU.

Owns the commands' options and their order: build the candidates, then race them. Imports torch only to race.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from prism_gen.cli.options import (
    DEFAULT_CACHE,
    ArchNames,
    BackendName,
    BlockSize,
    Cache,
    DTypeName,
    Jobs,
    ModelConfigs,
    Nvcc,
    load_models,
    runtime_packages,
    split,
)
from prism_gen.console import BuildProgress
from prism_gen.errors import ConfigError
from prism_gen.files import write_atomic
from prism_gen.jobs import default_jobs
from prism_gen.manifest import read_manifest
from prism_gen.toolchain import find_toolchain
from prism_gen.tuning_table import encode_table, merge_tables, read_table

STALL_S = 300.0  # a judged candidate or a timed stage takes seconds; the first also loads CUDA


def tune(
    model_config: ModelConfigs,
    gpu: Annotated[str, typer.Option(help="`auto` is the current GPU; or such as `cuda:1`.")] = "auto",
    shapes: Annotated[str, typer.Option(help="`default`, or a JSON file of seqlen, density and batch.")] = "default",
    budget: Annotated[float | None, typer.Option(help="Minutes; what is not finished then keeps its default.")] = None,
    out: Annotated[Path, typer.Option(help="The tuning table; beside it stands its journal.")] = Path("tuning.json"),
    candidates: Annotated[
        Path, typer.Option(help="Bundle of the candidates: used where it is, built where it is not.")
    ] = Path("generated/candidates"),
    prepare: Annotated[bool, typer.Option("--prepare", help="Build the candidates and stop: needs no GPU.")] = False,
    only: Annotated[str, typer.Option(help="Part of a kernel's name, such as `attend`.")] = "",
    shard: Annotated[str | None, typer.Option(help="Part i of n, such as `2/4`; `merge` joins the tables.")] = None,
    executor: Annotated[
        Literal["local", "ray"], typer.Option(help="`ray` spreads the kernels over the GPUs of a cluster.")
    ] = "local",
    backend: BackendName = "cuda",
    arch: ArchNames = "sm90",
    block_size: BlockSize = None,
    dtype: DTypeName = None,
    jobs: Jobs = None,
    nvcc: Nvcc = None,
    cache: Cache = DEFAULT_CACHE,
) -> None:
    """Measure which schedule of each kernel is fastest on this GPU, for the next `build --tuning`.

    Candidates are built, those that are not right are rejected, and the rest race on a grid of lengths, densities and
    batches by successive halving. Interrupted, the same command goes on where it was.

    Example: `python -m prism_gen tune -m config.json --block-size 128x128 --budget 30 --out h200.json`
    """
    from prism_gen.tune.prepare import is_prepared, make_units  # noqa: PLC0415 keeps the other commands quick to start
    from prism_gen.tune.prepare import prepare as prepare_candidates  # noqa: PLC0415
    from prism_gen.tune.prepare import shard as shard_units  # noqa: PLC0415
    from prism_gen.tune.shapes import DEFAULT_SHAPES, read_shapes  # noqa: PLC0415

    console = Console()
    models, archs = load_models(model_config, block_size, dtype), split(arch, "--arch")
    grid = DEFAULT_SHAPES if shapes == "default" else read_shapes(Path(shapes))
    chosen = None
    if not prepare:  # asked first: a machine without a GPU must not build for minutes to learn that it has none
        with runtime_packages("tune"):
            from prism_gen.tune.connect import connect  # noqa: PLC0415 imports torch
        chosen = connect(executor, backend, None if gpu == "auto" else gpu)
    bundle = candidates if backend == "cuda" or prepare else None
    if bundle and not is_prepared(bundle, models, archs, only):
        with BuildProgress(console) as progress:
            prepare_candidates(
                models,
                archs,
                only=only,
                out=bundle,
                cache=cache,
                toolchain=find_toolchain(nvcc=nvcc, cache=cache),
                jobs=jobs or default_jobs(),
                report=progress,
            )
    if chosen is None:
        console.print(f"candidates in {candidates}", highlight=False, markup=False, soft_wrap=True)
        return
    from prism_gen.tune.command import tune as tune_units  # noqa: PLC0415
    from prism_gen.tune.execute import Plan  # noqa: PLC0415

    units = make_units(models, archs, grid, bundle=bundle, only=only)
    plan = Plan(
        units=tuple(shard_units(units, shard)),
        make_stand=chosen.make_stand,
        bundle=bundle,
        journal=out.with_suffix(".journal.jsonl"),
        machine=chosen.machine,
        deadline=time.time() + budget * 60 if budget is not None else float("inf"),
        stall_s=STALL_S,
    )
    toolchain = read_manifest(bundle).toolchain if bundle else {}
    tune_units(plan, chosen.execute, out=out, toolchain=toolchain, console=console)


def merge(
    parts: Annotated[list[Path], typer.Argument(help="Tuning tables of the shards of one run.")],
    out: Annotated[Path, typer.Option(help="The joined table.")] = Path("tuning.json"),
) -> None:
    """Join the tuning tables of `tune --shard i/n` into one.

    Example: `python -m prism_gen merge part1.json part2.json --out h200.json`
    """
    if not parts:
        raise ConfigError("nothing to merge", fix="name the tables of the shards")
    table = merge_tables([read_table(path) for path in parts])
    write_atomic(out, encode_table(table))
    Console().print(
        f"{out}: {len(table.kernels)} kernels for {table.gpu}", highlight=False, markup=False, soft_wrap=True
    )
