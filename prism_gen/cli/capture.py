"""`prism_gen capture`: q, k, v of a model's layers on a text, as files for run, verify and bench.

Owns the command's options. Imports torch and transformers, so only when it is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from prism_gen.cli.options import runtime_packages


def capture(
    weights: Annotated[str, typer.Option(help="A folder that transformers loads, a `.gguf` file, or a hub name.")],
    text: Annotated[Path, typer.Option(help="What the model reads: a UTF-8 text file.")],
    layer: Annotated[list[int], typer.Option(min=0, help="Layer number; repeatable.")],
    out: Annotated[Path, typer.Option(help="Folder of the files: `layer14.safetensors`.")] = Path("generated/qkv"),
    tokens: Annotated[int, typer.Option(min=2, help="Of the text, from its start.")] = 8192,
    device: Annotated[str | None, typer.Option(help="Default: `cuda` where torch sees one.")] = None,
) -> None:
    """Record q, k, v of a model's layers while it reads a text; `run`, `verify` and `bench` take the files.

    Example: `python -m prism_gen capture --weights models/qwen3 --text README.md --layer 14`
    """
    with runtime_packages("capture"):
        from prism_gen.integrations.pretrained import capture_text  # noqa: PLC0415 imports torch and transformers

    for path in capture_text(weights, text, layer, out, tokens=tokens, device=device):
        Console().print(f"wrote {path}", markup=False, highlight=False)
