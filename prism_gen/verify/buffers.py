"""Buffers that show what a kernel must not do: read past the tokens, write outside its output, leave a value unwritten.

Owns poison, guards and layouts of tensors. Must not know kernels or cases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Layout = Literal["contiguous", "head_major", "fused"]
LAYOUTS: tuple[Layout, ...] = ("contiguous", "head_major", "fused")
PAD_TOKENS = 128  # rows behind the last token: one whole tile, which an unmasked tail would read or write
GUARD_FLOAT = 12352.0  # exact in bf16 (193 * 64), fp16 and fp32
GUARD_INT = 0x5A5A5A5A


def _guard(dtype: torch.dtype) -> float | int:
    return GUARD_FLOAT if dtype.is_floating_point else GUARD_INT


@dataclass(frozen=True)
class Guarded:
    """An output `view` inside a larger buffer; around it lies a guard value, inside it NaN (or the guard, for ints)."""

    buffer: Tensor
    window: Callable[[Tensor], Tensor]

    @property
    def view(self) -> Tensor:
        """The tensor that a kernel is given."""
        return self.window(self.buffer)

    def poison(self) -> None:
        """Fills the view with what no kernel writes, so that a place left unwritten shows."""
        self.view.fill_(float("nan") if self.buffer.is_floating_point() else GUARD_INT)

    def intact(self) -> bool:
        """True if nothing outside the view has changed."""
        copy = self.buffer.clone()
        guard = _guard(copy.dtype)
        self.window(copy).fill_(guard)
        return bool((copy == guard).all())


def guarded(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Guarded:
    """A contiguous output of `shape` between two guards, each as large as one entry of the first dim."""
    buffer = torch.full((shape[0] + 2, *shape[1:]), _guard(dtype), dtype=dtype, device=device)
    result = Guarded(buffer, lambda whole: whole[1:-1])
    result.poison()
    return result


def _window(layout: Layout, seqlen: int) -> Callable[[Tensor], Tensor]:
    if layout == "head_major":
        return lambda whole: whole[1:-1, :, :seqlen].transpose(1, 2)
    return lambda whole: whole[1:-1, :seqlen]


def _padded_shape(layout: Layout, batch: int, seqlen: int, heads: int, head_dim: int) -> tuple[int, ...]:
    if layout == "head_major":
        return batch + 2, heads, seqlen + PAD_TOKENS, head_dim
    return batch + 2, seqlen + PAD_TOKENS, heads, head_dim


def guarded_like(x: Tensor, layout: Layout) -> Guarded:
    """An output for `x` [batch, seqlen, num_heads, head_dim], with guard rows behind every sequence.

    layout "fused" stands for a slice of a wider tensor on the input side; its output is like "contiguous".
    """
    batch, seqlen, heads, head_dim = x.shape
    shape = _padded_shape(layout, batch, seqlen, heads, head_dim)
    buffer = torch.full(shape, _guard(x.dtype), dtype=x.dtype, device=x.device)
    result = Guarded(buffer, _window(layout, seqlen))
    result.poison()
    return result


def poisoned_input(values: Tensor, layout: Layout) -> Tensor:
    """`values` [batch, seqlen, num_heads, head_dim] in `layout`, with NaN rows before, behind and between sequences."""
    batch, seqlen, heads, head_dim = values.shape
    shape = _padded_shape(layout, batch, seqlen, heads, head_dim)
    buffer = torch.full(shape, float("nan"), dtype=values.dtype, device=values.device)
    view = _window(layout, seqlen)(buffer)
    view.copy_(values)
    return view


def poisoned_qkv(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v in `layout`; "fused" makes them slices of one [batch, tokens, q + k + v heads, head_dim] tensor."""
    if layout != "fused":
        return poisoned_input(q, layout), poisoned_input(k, layout), poisoned_input(v, layout)
    prefix = k.shape[1] - q.shape[1]
    nothing = torch.full((q.shape[0], prefix, *q.shape[2:]), float("nan"), dtype=q.dtype, device=q.device)
    fused = poisoned_input(torch.cat([torch.cat([nothing, q], 1), k, v], dim=2), "contiguous")
    after_q, after_k = q.shape[2], q.shape[2] + k.shape[2]
    return fused[:, prefix:, :after_q], fused[:, :, after_q:after_k], fused[:, :, after_k:]
