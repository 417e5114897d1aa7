"""`prism_gen run`: one layer on real q, k, v.

Owns the command's options. Imports torch, so only when it is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from prism_gen.cli.options import runtime_packages


def run(
    bundle: Annotated[Path, typer.Option(help="Bundle directory, as written by `build`.")],
    qkv: Annotated[Path, typer.Option(help="Safetensors file with one layer's real q, k, v.")],
    model: Annotated[str | None, typer.Option(help="Which model of the bundle. Default: the only one.")] = None,
    layer: Annotated[int | None, typer.Option(min=0, help="Layer number. Default: the file's.")] = None,
    block_size: Annotated[str | None, typer.Option(help="Such as `128x64`. Default: the model's first.")] = None,
    backend: Annotated[
        Literal["auto", "cuda", "reference"],
        typer.Option(help="`cuda` runs the bundle's kernels, `reference` plain torch anywhere."),
    ] = "auto",
    plot: Annotated[Path | None, typer.Option(help="Draw the block mask of every head into this PNG.")] = None,
) -> None:
    """Run one layer on real q, k, v: density, attention mass kept, error against dense attention, time per stage.

    Example: `python -m prism_gen run --bundle generated/qwen3 --qkv sample.safetensors --plot mask.png`
    """
    with runtime_packages("run"):
        from prism_gen.runtime.run_layer import run_layer  # noqa: PLC0415 imports torch

    run_layer(
        bundle=bundle,
        qkv=qkv,
        model=model,
        layer=layer,
        block_size=block_size,
        backend=backend,
        plot=plot,
        console=Console(),
    )
