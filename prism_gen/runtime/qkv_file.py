"""q, k, v of one layer from a safetensors file, and to one.

Owns the two layouts and what the file says of itself. Must not check them against a model (checks.py does).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from prism_gen.errors import TensorError

LAYOUTS = "q, k, v as [heads, seqlen, head_dim] or [batch, seqlen, heads, head_dim]"


class QKV(NamedTuple):
    """q: [batch, seqlen_q, num_q_heads, head_dim]; k, v: [batch, seqlen_k, num_kv_heads, head_dim]. layer: or None."""

    q: Tensor
    k: Tensor
    v: Tensor
    layer: int | None


def read_qkv(path: Path) -> QKV:
    """Reads a file; three-dim tensors become a batch of one.

    layer: the file's `layer` metadata, where it has one.
    Raises: TensorError if the file is missing, torn or lacks a tensor, or the tensors have neither layout.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = set(file.keys())
            metadata = file.metadata() or {}
            missing = [name for name in "qkv" if name not in names]
            if missing:
                raise TensorError(
                    f"{path} has no tensor {', '.join(missing)}",
                    exists=f"{', '.join(sorted(names)) or 'no tensors'} in the file",
                    fix=f"save {LAYOUTS}",
                )
            q, k, v = (file.get_tensor(name).clone() for name in "qkv")  # out of the mapped file, aligned
    except (OSError, safetensors.SafetensorError) as error:
        raise TensorError(
            f"{path} cannot be read as safetensors: {error}",
            exists=f"a file with {LAYOUTS}",
            fix="try examples/data/smollm2_pycode_L14_4k.safetensors",
        ) from None
    layer = metadata.get("layer", "")
    return QKV(*_batched(path, q, k, v), int(layer) if layer.isdecimal() else None)


def write_qkv(path: Path, qkv: QKV, *, model: str = "") -> None:
    """Writes a file that read_qkv reads back, with the layer and the name of the model in its metadata.

    Raises: TensorError where the path cannot be written.
    """
    metadata = {} if qkv.layer is None else {"layer": str(qkv.layer)}
    if model:
        metadata["model"] = model
    try:
        # Cloned, because safetensors refuses tensors that share memory, as parts of a fused projection do.
        parts = {name: x.clone(memory_format=torch.contiguous_format) for name, x in zip("qkv", qkv[:3], strict=True)}
        save_file(parts, path, metadata)
    except (OSError, safetensors.SafetensorError) as error:
        raise TensorError(f"{path} cannot be written: {error}", fix="choose another folder") from None


def _batched(path: Path, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Raises: TensorError unless all three have one of the two layouts."""
    dims = {x.dim() for x in tensors}
    if dims not in ({3}, {4}):
        shapes = ", ".join(str(list(x.shape)) for x in tensors)
        raise TensorError(f"q, k, v in {path} have shapes {shapes}", exists=LAYOUTS, fix="save all three in one layout")
    q, k, v = tensors if dims == {4} else (x.transpose(0, 1)[None] for x in tensors)
    return q, k, v
