"""A live transformers model as a ModelSpec, and what each of its layers will do, in words.

Owns the reading of a model's own config and dtype, and the statement. Must not load kernels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import torch
from torch import nn

from prism_gen.errors import UnsupportedError
from prism_gen.model import ModelSpec, SelectionSpec
from prism_gen.model_config import parse_model_config
from prism_gen.runtime.load import Bundle
from prism_gen.runtime.resolve import ranges

NOT_CAUSAL = -1  # stands for the layer index of encoders and cross-attention
KERNEL_DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16"}


class LayerStatement(NamedTuple):
    """What one layer will do.

    layer: its index. why_dense: "" for a layer that runs sparse. kernels: their names, in order of launch.
    """

    layer: int
    why_dense: str
    kernels: tuple[str, ...]


def attention_modules(model: nn.Module) -> dict[int, list[nn.Module]]:
    """The modules that call an attention function, by layer index or NOT_CAUSAL."""
    found: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        index = getattr(module, "layer_idx", None)
        if hasattr(module, "is_causal"):
            causal = bool(module.is_causal) and isinstance(index, int)
            found.setdefault(index if causal and isinstance(index, int) else NOT_CAUSAL, []).append(module)
    return found


def kernel_dtype(model: Any, *, exact: bool) -> str:
    """The dtype that kernels for a transformers model are of. exact: the backend takes fp32 and fp64 as well.

    Raises: UnsupportedError for a dtype without kernels.
    """
    dtype = KERNEL_DTYPES.get(model.dtype)
    if dtype is None and not exact:
        raise UnsupportedError(
            f"the model is {model.dtype}",
            exists=", ".join(map(str, KERNEL_DTYPES)),
            fix="load it with dtype=torch.bfloat16, or enable(..., backend='reference')",
        )
    return dtype or "bf16"


def where(model: Any) -> str:
    """How errors about a live model's config begin."""
    return f"config of {type(model).__name__}: "


def describe(model: Any, *, dtype: str, bundle: Bundle | None, selection: SelectionSpec | None) -> ModelSpec:
    """The decoder of a transformers model.

    selection: how its layers select; None takes the config's own `prism` object, else that of the bundle's model of
    this shape, else the paper's.
    Raises: ConfigError, UnsupportedError as parse_model_config does, their texts beginning with where().
    """
    config = model.config.get_text_config(decoder=True)
    name = where(model).removesuffix(": ")
    spec = parse_model_config(config.to_dict(), where=name, name=config.model_type, dtype=dtype)
    if selection is None and getattr(config, "prism", None) is None and bundle is not None:
        shape = _shape(spec)
        selection = next((m.selection for m in bundle.manifest.models if _shape(m) == shape), None)
    return spec if selection is None else msgspec.structs.replace(spec, selection=selection)


def _shape(model: ModelSpec) -> tuple[Any, ...]:
    """What two models must have in common to share their selection: everything that shapes scores."""
    return model.num_q_heads, model.num_kv_heads, model.head_dim, model.rope, model.softmax_scale


def sentences(statements: list[LayerStatement]) -> str:
    """One line for each run of layers that do the same: `layers 0-4: dense (sdpa): a window of 512 tokens`."""
    groups: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for statement in statements:
        groups.setdefault((statement.why_dense, statement.kernels), []).append(statement.layer)
    lines = []
    for (why_dense, kernels), layers in groups.items():
        what = f"dense, {why_dense}" if why_dense else f"sparse prefill, {', '.join(kernels)}"
        lines.append(f"  layer{'s' if len(layers) > 1 else ''} {ranges(layers)}: {what}")
    return "\n".join(lines)
