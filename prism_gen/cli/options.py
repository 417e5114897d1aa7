"""Options that several commands share, and what their texts mean.

Owns their names and help. Must not hold a command.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer

from prism_gen.doctor import RUNTIME_PACKAGES
from prism_gen.errors import ConfigError, UnsupportedError
from prism_gen.model import ModelSpec
from prism_gen.model_config import load_model_config, parse_block_size

ModelConfigs = Annotated[
    list[Path],
    typer.Option("--model-config", "-m", help="A Hugging Face config.json, as published; repeatable."),
]
ModelConfig = Annotated[Path, typer.Option("--model-config", "-m", help="A Hugging Face config.json, as published.")]
BundlePath = Annotated[Path, typer.Argument(help="Bundle directory, as written by `build`.")]
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
BackendName = Annotated[
    Literal["cuda", "reference"],
    typer.Option(
        envvar="PRISM_GEN_BACKEND",  # a CI recipe can be tried, as it is, where there is no GPU
        help="`reference` puts plain torch in the place of the kernels: tries the command itself, without a GPU.",
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", "-j", min=1, help="Compiles at once. Default: from cores and memory."),
]
DEFAULT_CACHE = Path("generated/cache")


def split(text: str, option: str) -> list[str]:
    """Parts of a comma-separated option. Raises: ConfigError if there are none."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise ConfigError(f"{option} {text!r} names nothing", fix="leave the option out, or name at least one")
    return parts


def load_models(paths: list[Path], block_size: str | None, dtype: str | None) -> list[ModelSpec]:
    """The models of several config.json, with the block sizes and dtype of the options. Raises: ConfigError."""
    pairs = (
        tuple(parse_block_size(part) for part in split(block_size, "--block-size")) if block_size is not None else None
    )
    return [load_model_config(path, block_sizes=pairs, dtype=dtype) for path in paths]


def default_bundle(models: list[ModelSpec]) -> Path:
    """Where the bundle of one model goes. Raises: ConfigError for several."""
    if len(models) > 1:
        raise ConfigError("several models need a name for their bundle", fix="add --out generated/NAME")
    return Path("generated") / models[0].name.replace("/", "--")


@contextlib.contextmanager
def runtime_packages(command: str) -> Iterator[None]:
    """Around a command's late imports of torch and what comes with it, so that building needs none of them.

    Raises: UnsupportedError with the fix where a package of the extras `runtime` and `transformers` is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name == "transformers":
            fix = "pip install 'prism-gen[transformers]'"
            raise UnsupportedError(f"{command} needs transformers, which is not installed", fix=fix) from None
        if error.name not in RUNTIME_PACKAGES:
            raise
        fix = "pip install torch 'prism-gen[runtime]', with the torch build for your CUDA; doctor shows the rest"
        raise UnsupportedError(f"{command} needs {error.name}, which is not installed", fix=fix) from None
