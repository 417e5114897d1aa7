"""`prism_gen inspect`: what a bundle holds.

Owns the command's options. Must not import torch.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

from prism_gen.cli.options import BundlePath
from prism_gen.console import print_manifest
from prism_gen.manifest import encode_manifest, read_manifest


def inspect(
    bundle: BundlePath,
    json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON, for other programs.")] = False,
) -> None:
    """Show what a bundle holds: models, kernels, registers, shared memory, and what built them.

    Example: `python -m prism_gen inspect generated/qwen3 --json | jq '.kernels[].name'`
    """
    manifest = read_manifest(bundle)
    if json:
        sys.stdout.write(encode_manifest(manifest).decode())
    else:
        print_manifest(Console(), bundle, manifest)
