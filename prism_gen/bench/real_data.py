"""A file of one layer's real q, k, v as what bench measures on, for the models of a bundle that it fits.

Owns what is taken of the file. Must not select or time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from prism_gen.files import sha256
from prism_gen.model import ModelSpec
from prism_gen.runtime.checks import TORCH_DTYPES
from prism_gen.runtime.qkv_file import QKV
from prism_gen.verify.layers import fits, read_fitting


class RealData(NamedTuple):
    """name: of the file. digest: its SHA-256."""

    name: str
    digest: str
    qkv: QKV

    @classmethod
    def read(cls, path: Path, models: Sequence[ModelSpec]) -> RealData:
        """Raises: TensorError for a file that cannot be read; ConfigError for one that none of the models fits."""
        return cls(path.name, sha256(path), read_fitting(path, models))

    def fits(self, model: ModelSpec) -> bool:
        """Whether its heads can be some of this model's."""
        return fits(model, self.qkv)

    def layer(self, model: ModelSpec) -> int:
        """The layer whose thresholds select: the file's own, else the model's first that attends to everything."""
        return model.layer_kinds.index("full") if self.qkv.layer is None else self.qkv.layer

    def tensors(self, model: ModelSpec, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v of the first sequence in the model's dtype, contiguous [1, seqlen, heads, head_dim]."""
        dtype = TORCH_DTYPES[model.dtype]
        q, k, v = (x[:1].to(device, dtype).contiguous() for x in self.qkv[:3])
        return q, k, v
