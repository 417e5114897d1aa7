"""From what a caller names (bundle, model, layer, block size, device) to a Backend that is ready to launch.

Owns the choices made once, at construction: model lookup, device checks, resolution and opening of kernels. Never falls
back from one backend to another.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import torch

from prism_gen.errors import ConfigError, DeviceError, UnsupportedError
from prism_gen.model import ModelSpec, SelectionSpec
from prism_gen.model_config import load_model_config
from prism_gen.rope import Bands
from prism_gen.runtime.backend import Backend, ReferenceBackend
from prism_gen.runtime.cuda import CudaBackend
from prism_gen.runtime.cuda_stages import TILE_COUNTERS
from prism_gen.runtime.cuda_subblock import CudaSubBlockBackend
from prism_gen.runtime.load import Bundle, load_bundle
from prism_gen.runtime.resolve import Resolution, build_command, layer_requests, resolve
from prism_gen.runtime.rules import SelectRules
from prism_gen.specialize import block_pair_scoring
from prism_gen.sub_blocks import SubBlocks

BackendName = Literal["cuda", "reference"]
BACKENDS: tuple[BackendName, ...] = ("cuda", "reference")
CONFIG_PLACEHOLDER = "config.json"  # in a build command, where the caller named no file


class Subject(NamedTuple):
    """Which model, and the path of its config.json where one was given."""

    model: ModelSpec
    config: str


class Connection(NamedTuple):
    """A backend, what it scores with, the device it is bound to (None: any), and how its kernels were chosen."""

    backend: Backend
    scoring: Bands | SubBlocks
    device: torch.device | None
    resolutions: tuple[Resolution, ...]


def open_bundle(bundle: Bundle | str | Path | None) -> Bundle | None:
    """A loaded bundle from a path; a Bundle or None as it is. Raises: BundleError as load_bundle does."""
    return load_bundle(bundle) if isinstance(bundle, str | Path) else bundle


def find_model(bundle: Bundle | None, model: ModelSpec | str | Path | None) -> Subject:
    """A ModelSpec; the path of a config.json; or a name in the bundle (None: its only model).

    Raises: ConfigError where nothing of that name exists.
    """
    if isinstance(model, ModelSpec):
        return Subject(model, CONFIG_PLACEHOLDER)
    if isinstance(model, Path) or (isinstance(model, str) and model.endswith(".json")):
        return Subject(load_model_config(Path(model)), str(model))
    if bundle is None:
        raise ConfigError(
            f"no bundle to look up model {model!r} in" if model else "neither a bundle nor a model was given",
            fix="give a bundle, a ModelSpec, or the path of a config.json",
        )
    return Subject(bundle.model(model), CONFIG_PLACEHOLDER)


def check_layer(model: ModelSpec, layer: int) -> None:
    """Raises: ConfigError if the model has no such layer; UnsupportedError if it does not attend to everything."""
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < model.num_layers:
        raise ConfigError(
            f"layer {layer!r} of {model.name}", exists=f"layers 0 to {model.num_layers - 1}", fix="give one of these"
        )
    if model.layer_kinds[layer] != "full":
        full = [str(i) for i, kind in enumerate(model.layer_kinds) if kind == "full"]
        raise UnsupportedError(
            f"layer {layer} of {model.name} is a {model.layer_kinds[layer]}-window layer, too short to select from",
            exists=f"full-attention layers: {', '.join(full) or 'none'}",
            fix="serve this layer with the dense path",
        )


def choose_block_size(model: ModelSpec, block_size: tuple[int, int] | None) -> tuple[int, int]:
    """(q tokens, k tokens), the model's first by default. Raises: ConfigError unless a pair of positive integers."""
    if block_size is None:
        return model.selection.block_sizes[0]
    pair = tuple(block_size) if isinstance(block_size, tuple | list) else ()
    if len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
        raise ConfigError(
            f"block_size is {block_size!r}", exists="(q tokens, k tokens), such as (128, 64)", fix="give such a pair"
        )
    return pair[0], pair[1]


def connect(
    backend: str,
    *,
    bundle: Bundle | None,
    subject: Subject,
    block_size: tuple[int, int],
    device: torch.device | str | int | None,
) -> Connection:
    """The backend that was asked for, or an error.

    device: for "cuda", None means the current one; for "reference" it is ignored, because that runs where its tensors
    are.
    Raises: UnsupportedError for an unknown backend; DeviceError, BundleError or ResolveError where "cuda" cannot be
    had.
    """
    model = subject.model
    rules = model_rules(model.selection)
    scoring = block_pair_scoring(model, block_size)
    if backend == "reference":
        return Connection(ReferenceBackend(scoring, model.rope.interleaved, rules), scoring, None, ())
    if backend != "cuda":
        raise UnsupportedError(f"no backend {backend!r}", exists=", ".join(BACKENDS), fix="choose one of these")
    cuda = cuda_device(device)
    if bundle is None:
        raise ConfigError("the cuda backend was asked for without a bundle of kernels", fix="give the path of a bundle")
    arch = bundle.arch_for(torch.cuda.get_device_capability(cuda), torch.cuda.get_device_name(cuda))
    command = build_command(model, arch, block_size, config=subject.config, out=str(bundle.path))
    chosen = {
        name: resolve(bundle.manifest.kernels, request, build_command=command)
        for name, request in layer_requests(model, arch, block_size).items()
    }
    modules = {name: bundle.module(resolution.entry) for name, resolution in chosen.items()}
    TILE_COUNTERS.reserve(cuda)
    opened = (
        CudaSubBlockBackend(**modules, sub_blocks=scoring, rules=rules)
        if isinstance(scoring, SubBlocks)
        else CudaBackend(**modules, rules=rules)
    )
    return Connection(opened, scoring, cuda, tuple(chosen.values()))


def model_rules(selection: SelectionSpec) -> SelectRules:
    """A model's rules."""
    return SelectRules(
        force_sink=selection.force_sink,
        force_recent=selection.force_recent,
        share=selection.share,
        calibration=selection.calibration,
        cut=selection.cut,
        max_blocks=selection.max_blocks,
    )


def cuda_device(device: torch.device | str | int | None) -> torch.device:
    """A CUDA device with its index. Raises: DeviceError where there is none, or `device` is not one."""
    if not torch.cuda.is_available():
        built = torch.version.cuda
        raise DeviceError(
            "the cuda backend was asked for, and torch sees no CUDA device",
            exists=f"torch {torch.__version__}, " + (f"built for CUDA {built}" if built else "built without CUDA"),
            fix='install a CUDA build of torch and its driver, or choose backend="reference"',
        )
    try:
        chosen = torch.device("cuda" if device is None else device)
    except (RuntimeError, TypeError):
        chosen = None
    count = torch.cuda.device_count()
    if chosen is None or chosen.type != "cuda" or (chosen.index or 0) >= count:
        raise DeviceError(
            f"device {device!r}", exists=", ".join(f"cuda:{i}" for i in range(count)), fix="give one of these"
        )
    return torch.device("cuda", torch.cuda.current_device() if chosen.index is None else chosen.index)
