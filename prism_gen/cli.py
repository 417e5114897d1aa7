"""The command line: build | inspect | explain | doctor | run.

Owns options and their help, and turns a PrismError into words and exit status 1. Must not import torch, except through
`run`, so that building needs neither torch nor a GPU.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import typer
from rich.console import Console

from prism_gen.build import build as build_bundle
from prism_gen.compile import default_jobs
from prism_gen.console import BuildProgress, print_error, print_findings, print_manifest
from prism_gen.doctor import RUNTIME_PACKAGES, build_findings, run_findings
from prism_gen.errors import ConfigError, PrismError, UnsupportedError
from prism_gen.manifest import encode_manifest, read_manifest
from prism_gen.model import ModelSpec
from prism_gen.model_config import load_model_config, parse_block_size
from prism_gen.specialize import specialize
from prism_gen.toolchain import find_toolchain

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Ahead-of-time CUTLASS kernels for spectral-aware block-sparse prefill attention.",
    epilog="Start with `doctor`; then `build --model-config config.json`, `inspect` and `run`.",
)

ModelConfig = Annotated[
    list[Path],
    typer.Option("--model-config", "-m", help="A Hugging Face config.json, as published; repeatable."),
]
BlockSize = Annotated[
    str | None,
    typer.Option(help="q x k tokens, comma-separated: `128x128,128x64`. Default: the config's, or 128x128."),
]
DTypeName = Annotated[str | None, typer.Option("--dtype", help="`bf16` or `fp16`. Default: the config's torch_dtype.")]
ArchNames = Annotated[str, typer.Option("--arch", help="Architectures, comma-separated. `sm90` is Hopper: H100, H200.")]
Nvcc = Annotated[
    Path | None,
    typer.Option(help="The nvcc to use. Default: in $CUDA_HOME, wheels, PATH, /usr/local/cuda."),
]
Cache = Annotated[
    Path, typer.Option(envvar="PRISM_GEN_CACHE", help="Folder of compiled kernels, shared by all builds and processes.")
]
DEFAULT_CACHE = Path("generated/cache")


def _split(text: str, option: str) -> list[str]:
    """Parts of a comma-separated option. Raises: ConfigError if there are none."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise ConfigError(f"{option} {text!r} names nothing", fix="leave the option out, or name at least one")
    return parts


def _models(paths: list[Path], block_size: str | None, dtype: str | None) -> list[ModelSpec]:
    pairs = (
        tuple(parse_block_size(part) for part in _split(block_size, "--block-size")) if block_size is not None else None
    )
    return [load_model_config(path, block_sizes=pairs, dtype=dtype) for path in paths]


def _default_out(models: list[ModelSpec]) -> Path:
    if len(models) > 1:
        raise ConfigError("several models need a name for their bundle", fix="add --out generated/NAME")
    return Path("generated") / models[0].name.replace("/", "--")


@app.command()
def build(
    model_config: ModelConfig,
    arch: ArchNames = "sm90",
    block_size: BlockSize = None,
    dtype: DTypeName = None,
    out: Annotated[Path | None, typer.Option(help="Bundle directory. Default: generated/MODEL.")] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", min=1, help="Compiles at once. Default: from cores and memory."),
    ] = None,
    nvcc: Nvcc = None,
    cache: Cache = DEFAULT_CACHE,
) -> None:
    """Build the kernels that a model needs into a bundle. Needs nvcc, but neither torch nor a GPU.

    A second build of the same inputs takes what is in the cache; several models may share one bundle.

    Example: `python -m prism_gen build -m config.json --block-size 128x128,128x64 --out generated/qwen3`
    """
    started = time.monotonic()
    models = _models(model_config, block_size, dtype)
    out = out or _default_out(models)
    toolchain = find_toolchain(nvcc=nvcc, cache=cache)
    console = Console()
    with BuildProgress(console) as progress:
        manifest = build_bundle(
            models,
            archs=_split(arch, "--arch"),
            out=out,
            cache=cache,
            toolchain=toolchain,
            jobs=jobs or default_jobs(),
            report=progress,
        )
    console.print(
        f"bundle {out}: {len(manifest.kernels)} kernels ({progress.compiled} compiled, {progress.reused} unchanged) "
        f"in {time.monotonic() - started:.1f} s; see inside: python -m prism_gen inspect {out}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


@app.command()
def inspect(
    bundle: Annotated[Path, typer.Argument(help="Bundle directory, as written by `build`.")],
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


@app.command()
def explain(
    model_config: Annotated[
        Path, typer.Option("--model-config", "-m", help="A Hugging Face config.json, as published.")
    ],
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

    (model,) = _models([model_config], block_size, dtype)
    keys = {entry.key for entry in read_manifest(bundle).kernels} if bundle else None
    explain_model(model, specialize(model, _split(arch, "--arch")), layer=layer, bundle_keys=keys, console=Console())


@app.command()
def doctor(nvcc: Nvcc = None, cache: Cache = DEFAULT_CACHE) -> None:
    """Say what this machine has and lacks for building and for running, with the command that fixes each.

    Exit status 1 if it cannot build. Example: `python -m prism_gen doctor`
    """
    console = Console()
    to_build = build_findings(nvcc=nvcc, cache=cache)
    print_findings(console, "To build (no GPU needed):", to_build)
    print_findings(console, "To run:", run_findings())
    if not all(finding.ok for finding in to_build):
        raise typer.Exit(1)


@app.command()
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
    try:
        from prism_gen.runtime.run_layer import run_layer  # noqa: PLC0415 imports torch
    except ModuleNotFoundError as error:
        if error.name not in RUNTIME_PACKAGES:
            raise
        fix = "pip install torch 'prism-gen[runtime]', with the torch build for your CUDA; doctor shows the rest"
        raise UnsupportedError(f"run needs {error.name}, which is not installed", fix=fix) from None

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


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signal.SIGTERM)  # unwinds, so that running compilers are killed


def main() -> None:
    """Entry point: a PrismError is printed in red, without a traceback, and exits with status 1."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except PrismError as error:
        print_error(Console(stderr=True), error)
        sys.exit(1)
    except OSError as error:  # a full disk, a read-only folder
        words = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        print_error(Console(stderr=True), PrismError(words, fix="choose folders you may write with --out and --cache"))
        sys.exit(1)
