"""`prism_gen explain`: which kernels a model gets, and why.

Owns the command's options. Must not import torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from prism_gen.cli.options import ArchNames, BlockSize, DTypeName, ModelConfig, load_models, split
from prism_gen.manifest import read_manifest
from prism_gen.specialize import specialize


def explain(
    model_config: ModelConfig,
    layer: Annotated[int | None, typer.Option(min=0, help="Explain this layer only.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Say which of the kernels this bundle holds.")] = None,
    arch: ArchNames = "sm90",
    block_size: BlockSize = None,
    dtype: DTypeName = None,
) -> None:
    """Say which kernels a model needs and why: its bands, what pooling leaves of each RoPE pair, what is missing.

    Example: `python -m prism_gen explain -m config.json --layer 0 --bundle generated/qwen3`
    """
    from prism_gen.explain import explain as explain_model  # noqa: PLC0415 keeps the other commands quick to start

    (model,) = load_models([model_config], block_size, dtype)
    manifest = read_manifest(bundle) if bundle else None
    explain_model(model, specialize(model, split(arch, "--arch")), layer=layer, bundle=manifest, console=Console())
