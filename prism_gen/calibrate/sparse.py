"""A model's attention, dense or sparse at given thresholds, as calibrate runs it.

Owns that: the kernels of a bundle where the layers were opened with one, plain torch elsewhere. Must not judge.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from prism_gen.calibrate.allocate import Array
from prism_gen.calibrate.model import Attention
from prism_gen.model import ModelSpec
from prism_gen.runtime.attention import PrismAttention
from prism_gen.runtime.checks import TORCH_DTYPES
from prism_gen.runtime.load import Bundle
from prism_gen.runtime.masked import dense_attention, masked_attention
from prism_gen.runtime.results import Stats


def open_layers(spec: ModelSpec, bundle: Bundle | None) -> list[PrismAttention]:
    """The attention of every layer: of a bundle's kernels, or, without one, in plain torch."""
    backend = "reference" if bundle is None else "cuda"
    return [PrismAttention(bundle, spec, layer, backend=backend) for layer in range(spec.num_layers)]


def dense_run(spec: ModelSpec) -> Attention:
    """Dense attention of every layer."""
    scale = spec.softmax_scale or spec.head_dim**-0.5
    return lambda _layer, q, k, v: dense_attention(q, k, v, softmax_scale=scale)


class SparseRun:
    """Sparse attention of every layer. thresholds: [layers, lists]; None: the layers' own.

    densities: of each layer that ran, in order, [lists], the mean over the batch.
    """

    def __init__(self, layers: Sequence[PrismAttention], thresholds: Array | None = None) -> None:
        self._layers, self._thresholds = layers, thresholds
        self.densities: list[Tensor] = []

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """out like q."""
        attention = self._layers[layer]
        chosen = None
        if self._thresholds is not None:
            names = ("high", "low") if attention.model.selection.estimator == "paper" else ("threshold",)
            chosen = attention.make_thresholds(**dict.fromkeys(names, self._thresholds[layer].tolist()))
        dtype = q.dtype
        if attention.device is not None:
            q, k, v = (x.to(TORCH_DTYPES[attention.model.dtype]) for x in (q, k, v))
        selection = attention.select(attention.pool(q, k), thresholds=chosen)
        self.densities.append(Stats.of(selection).density.mean(0))
        if attention.device is not None:
            return attention.attend(q, k, v, selection)[0].to(dtype)
        return masked_attention(q, k, v, selection, softmax_scale=attention.softmax_scale).out
