"""A model's attention through PrismAttention, with a record of what every layer selected and how much mass that held.

Owns SparseAttention. Must not know perplexity or documents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from prism_gen.model import ModelSpec, SelectionSpec
from prism_gen.runtime import PrismAttention
from prism_gen.runtime.gathered import gathered_attention
from prism_gen.runtime.load import Bundle
from prism_gen.runtime.masked import dense_attention, masked_attention
from prism_gen.runtime.results import Stats, mass_kept
from prism_gen.runtime.selection import Selection
from prism_gen.runtime.thresholds import Thresholds

Backend = Literal["reference", "masked", "cuda"]
BACKENDS: tuple[Backend, ...] = ("reference", "masked", "cuda")
SAMPLED_ROWS = 128  # of a sequence, on which mass is measured where attend does not give it: 1/64 at 8192 tokens


class LayerRecord(NamedTuple):
    """What one layer did: density and mean mass kept, both [batch, num_q_heads] on the CPU."""

    density: Tensor
    mass: Tensor


class SparseAttention:
    """Attention of every layer, each at its own setting.

    backend: "reference" (block-sparse in plain torch, for a CPU), "masked" (its selection, dense attention under a
    mask, for a GPU), or "cuda" (the kernels of a bundle, on bf16 q, k and v).
    """

    def __init__(self, layers: Sequence[PrismAttention | None], backend: Backend) -> None:
        """layers: as open_layers gives them."""
        self.layers, self.backend = layers, backend
        self.records: list[LayerRecord] = []

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """out like q; one more record. q, k, v: as smollm2.Attention."""
        attention = self.layers[layer]
        if attention is None:
            self.records.append(LayerRecord(*torch.ones(2, q.shape[0], q.shape[2])))
            return dense_layer(q, k, v, self.backend)
        if self.backend == "masked":
            selection = attention.select(attention.pool(q, k))
            result = masked_attention(q, k, v, selection, softmax_scale=attention.softmax_scale)
            out, mass = result.out, mass_kept(result.lse, result.dense_lse)
        else:
            out, selection = sparse_layer(attention, q, k, v, self.backend)
            mass = _sampled_mass(q, k, selection, attention.softmax_scale)
        self.records.append(LayerRecord(head_density(selection, q.shape[2]).cpu(), mass.mean(-1).cpu()))
        return out


def open_layers(
    model: ModelSpec, selections: Sequence[SelectionSpec | None], backend: Backend, bundle: Bundle | None = None
) -> list[PrismAttention | None]:
    """The attention of each layer at its selection; None is dense. Raises: as PrismAttention does."""
    name = "cuda" if backend == "cuda" else "reference"

    def of(layer: int, selection: SelectionSpec | None) -> PrismAttention | None:
        if selection is None:
            return None
        spec = msgspec.structs.replace(model, selection=selection)
        return PrismAttention(bundle, spec, layer, backend=name)

    return [of(layer, selection) for layer, selection in enumerate(selections)]


def sparse_layer(
    attention: PrismAttention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    backend: Backend,
    *,
    thresholds: Thresholds | None = None,
) -> tuple[Tensor, Selection]:
    """out, fp32 like q, and what was selected. thresholds: over the attention's own."""
    if backend == "cuda":
        q, k, v = (x.bfloat16() for x in (q, k, v))
    selection = attention.select(attention.pool(q, k), thresholds=thresholds)
    if backend == "cuda":
        out, _ = attention.attend(q, k, v, selection)
    elif backend == "masked":
        out = masked_attention(q, k, v, selection, softmax_scale=attention.softmax_scale).out
    else:
        out = gathered_attention(q, k, v, selection, softmax_scale=attention.softmax_scale)
    return out.float(), selection


def dense_layer(q: Tensor, k: Tensor, v: Tensor, backend: Backend) -> Tensor:
    """Dense attention, fp32 like q, of inputs rounded as the backend's are."""
    if backend == "cuda":
        q, k, v = (x.bfloat16() for x in (q, k, v))
    return dense_attention(q, k, v, softmax_scale=q.shape[-1] ** -0.5).float()


def head_density(selection: Selection, num_q_heads: int) -> Tensor:
    """Of every q head, [batch, num_q_heads], selected over visible blocks."""
    density = Stats.of(selection).density
    return density.repeat_interleave(num_q_heads // density.shape[1], dim=1)


def _sampled_mass(q: Tensor, k: Tensor, selection: Selection, softmax_scale: float) -> Tensor:
    """Dense attention's probability on the selected blocks, of SAMPLED_ROWS rows: [batch, num_q_heads, rows]."""
    grid = selection.grid
    rows = torch.arange(0, q.shape[1], max(1, q.shape[1] // SAMPLED_ROWS), device=q.device)
    hidden = torch.arange(k.shape[1], device=k.device) > rows[:, None] + grid.prefix
    chosen = selection.block_mask().repeat_interleave(q.shape[2] // selection.block_counts.shape[1], dim=1)
    chosen = chosen[:, :, rows // grid.block_size_q].float()
    group_size, missing = q.shape[2] // k.shape[2], grid.num_k_blocks * grid.block_size_k - grid.seqlen_k
    parts = []
    for kv_head in range(k.shape[2]):
        heads = slice(kv_head * group_size, (kv_head + 1) * group_size)
        scores = q[:, rows, heads].float().transpose(1, 2) @ k[:, None, :, kv_head].float().transpose(-1, -2)
        probs = F.pad((scores * softmax_scale).masked_fill_(hidden, -math.inf).softmax(-1), (0, missing))
        by_block = probs.reshape(*probs.shape[:-1], grid.num_k_blocks, grid.block_size_k).sum(-1)
        parts.append((by_block * chosen[:, heads]).sum(-1))
    return torch.cat(parts, dim=1)
