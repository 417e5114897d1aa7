"""`prism_gen pack`: bundles as one file to ship.

Owns the command's options. Must not import torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from prism_gen.pack import pack as pack_bundles


def pack(
    bundles: Annotated[list[Path], typer.Argument(help="Bundle directories of the same models, one or several.")],
    out: Annotated[Path, typer.Option(help="Folder to write into.")] = Path("dist"),
    form: Annotated[
        Literal["wheel", "tar"], typer.Option("--format", help="`wheel` for pip, `tar` for anything else.")
    ] = "wheel",
    name: Annotated[str | None, typer.Option(help="Of the package. Default: the only model's.")] = None,
) -> None:
    """Pack bundles into a wheel `prism-gen-bundle-NAME`, or a tar: it runs without nvcc and what building needs.

    Example: `python -m prism_gen pack generated/qwen3 --out dist && pip install dist/prism_gen_bundle_*.whl`
    """
    path = pack_bundles(bundles, out=out, form=form, name=name)
    size = path.stat().st_size / 1e6
    Console().print(f"{path}: {size:.1f} MB", highlight=False, markup=False, soft_wrap=True)
