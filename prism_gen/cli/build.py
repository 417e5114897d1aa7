"""`prism_gen build`: the kernels that models need, as a bundle.

Owns the command's options and its last line. Must not import torch.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from prism_gen.build import build as build_bundle
from prism_gen.cli.options import (
    DEFAULT_CACHE,
    ArchNames,
    BlockSize,
    Cache,
    DTypeName,
    Jobs,
    ModelConfigs,
    Nvcc,
    default_bundle,
    load_models,
    split,
)
from prism_gen.console import BuildProgress
from prism_gen.jobs import default_jobs
from prism_gen.plan import plan
from prism_gen.render import template_root
from prism_gen.toolchain import find_toolchain
from prism_gen.tuning_table import read_table


def build(
    model_config: ModelConfigs,
    arch: ArchNames = "sm90",
    block_size: BlockSize = None,
    dtype: DTypeName = None,
    out: Annotated[Path | None, typer.Option(help="Bundle directory. Default: generated/MODEL.")] = None,
    jobs: Jobs = None,
    tuning: Annotated[Path | None, typer.Option(help="Schedules measured by `tune`, instead of the defaults.")] = None,
    gpu: Annotated[
        str | None, typer.Option(help="What the bundle is for, such as `H200`: a tuning table of another is ignored.")
    ] = None,
    digest: Annotated[
        bool, typer.Option("--digest", help="Print the digest of all inputs, a key for caches in CI, and stop.")
    ] = False,
    nvcc: Nvcc = None,
    cache: Cache = DEFAULT_CACHE,
) -> None:
    """Build the kernels that a model needs into a bundle. Needs nvcc, but neither torch nor a GPU.

    A second build of the same inputs takes what is in the cache; several models may share one bundle.

    Example: `python -m prism_gen build -m config.json --block-size 128x128,128x64 --out generated/qwen3`
    """
    started = time.monotonic()
    models = load_models(model_config, block_size, dtype)
    out = out or default_bundle(models)
    table = read_table(tuning) if tuning else None
    toolchain = find_toolchain(nvcc=nvcc, cache=cache)
    if digest:
        planned = plan(models, split(arch, "--arch"), toolchain=toolchain, root=template_root(), table=table, gpu=gpu)
        sys.stdout.write(f"{planned.digest}\n")
        return
    console = Console()
    with BuildProgress(console) as progress:
        manifest = build_bundle(
            models,
            archs=split(arch, "--arch"),
            out=out,
            cache=cache,
            toolchain=toolchain,
            jobs=jobs or default_jobs(),
            report=progress,
            table=table,
            gpu=gpu,
        )
    console.print(
        f"bundle {out}: {len(manifest.kernels)} kernels ({progress.compiled} compiled, {progress.reused} unchanged) "
        f"in {time.monotonic() - started:.1f} s; see inside: python -m prism_gen inspect {out}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
