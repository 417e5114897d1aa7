"""`prism_gen bench`: how fast a bundle is beside what else is installed, and whether it became slower.

Owns the command's options and its exit status. Imports torch only to measure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console

from prism_gen.cli.build import build
from prism_gen.cli.options import (
    BackendName,
    BlockSize,
    DTypeName,
    default_bundle,
    load_models,
    runtime_packages,
    split,
)
from prism_gen.errors import ConfigError

_N = TypeVar("_N", int, float)
INTERRUPTED = 130  # the shell's status of a command that Ctrl-C ended
LENGTHS, DENSITIES = "8192,32768,131072", "0.1,0.25"


def bench(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle directory, as written by `build`.")] = None,
    model_config: Annotated[
        Path | None, typer.Option("--model-config", "-m", help="Build this model's bundle first, and measure that.")
    ] = None,
    qkv: Annotated[Path | None, typer.Option(help="Real q, k, v of a layer, as `capture` writes them.")] = None,
    lengths: Annotated[str | None, typer.Option(help=f"Tokens, comma-separated. Default: {LENGTHS}.")] = None,
    densities: Annotated[
        str | None, typer.Option(help=f"Shares of the causal blocks, for attend alone. Default: {DENSITIES}.")
    ] = None,
    peers: Annotated[str | None, typer.Option(help="Comma-separated, or `none`. Default: all that run here.")] = None,
    prism_src: Annotated[str | None, typer.Option(help="Checkout of the official Prism, for its peers.")] = None,
    flashprefill_lib: Annotated[
        str | None, typer.Option(help="FlashPrefill V2, as tools/build_flashprefill.py makes it.")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write every run of every figure.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Folder for speedup.png, roofline.png and ceiling.png.")] = None,
    results: Annotated[Path | None, typer.Option(help="Take this file's figures instead of measuring.")] = None,
    compare: Annotated[Path | None, typer.Option(help="An earlier --json file; exit status 1 if slower.")] = None,
    fail_over: Annotated[str, typer.Option(help="How much slower is too much: `5%`.")] = "5%",
    backend: BackendName = "cuda",
    device: Annotated[str | None, typer.Option(help="Such as `cuda:1`. Default: the current one.")] = None,
    block_size: BlockSize = None,
    dtype: DTypeName = None,
) -> None:
    """Measure selection, attend and the whole layer beside torch, FlexAttention, FlashAttention and the official Prism.

    Medians of 14 runs (7 of calls beyond 0.1 s), all in turn in one process, launches hidden behind work, with the
    ceilings of this chip in the same run. On random tensors, or with --qkv on your own: their length, and the blocks
    that the layer selects of them. A peer's output must be ours. Interrupted, it reports what was measured.

    Example: `python -m prism_gen bench generated/qwen3 --json new.json --plots plots --compare old.json --fail-over 5%`

    Example: `python -m prism_gen bench generated/qwen3 --qkv qkv/layer14.safetensors`
    """
    from prism_gen.bench.compare import parse_share  # noqa: PLC0415 keeps the other commands quick to start
    from prism_gen.bench.figures import read_run  # noqa: PLC0415

    allowed, console = parse_share(fail_over), Console()
    with runtime_packages("bench"):
        from prism_gen.bench.command import guard, measure, report  # noqa: PLC0415 imports torch

    if results:
        run = read_run(results)
    else:
        if model_config:
            bundle = bundle or default_bundle(load_models([model_config], block_size, dtype))
            build([model_config], block_size=block_size, dtype=dtype, out=bundle)
        if bundle is None:
            raise ConfigError("nothing to measure", fix="give a bundle, --model-config, or --results")
        if qkv and (lengths or densities):
            raise ConfigError("--lengths and --densities are of random tensors", fix="leave them out beside --qkv")
        run = measure(
            bundle,
            backend=backend,
            device=device,
            lengths=_numbers(lengths or LENGTHS, "--lengths", int, math.inf, "whole numbers of at least 1"),
            densities=_numbers(densities or DENSITIES, "--densities", float, 1.0, "shares in (0, 1]"),
            peers=None if peers is None else () if peers == "none" else tuple(split(peers, "--peers")),
            prism_src=prism_src,
            flashprefill_lib=flashprefill_lib,
            qkv=qkv,
            console=console,
        )
    report(run, json=json, plots=plots, console=console)
    if not run.complete and not results:
        raise typer.Exit(INTERRUPTED)
    if compare and not guard(compare, run, allowed, console):
        raise typer.Exit(1)


def _numbers(text: str, option: str, kind: Callable[[str], _N], most: float, words: str) -> tuple[_N, ...]:
    """Positive numbers of a comma-separated option, none above `most`. Raises: ConfigError."""
    try:
        numbers = tuple(kind(part) for part in split(text, option))
    except ValueError:
        numbers = ()
    if not numbers or not all(0 < number <= most for number in numbers):
        raise ConfigError(f"{option} {text!r}", exists=words, fix="separate them by commas")
    return numbers
