"""Everything a caller can get wrong about tensors, refused in words before any kernel sees it.

Owns the TensorError and DeviceError texts about q, k, v and selections. Reads shapes, strides and dtypes, never values,
so nothing synchronises. Must not import kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from prism_gen.errors import DeviceError, TensorError
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.selection import Selection

TORCH_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
EXACT_DTYPES = (torch.float32, torch.float64)  # the reference backend takes these too
ALIGN_BYTES = 16  # TMA and 16-byte vector loads: every stride but the last, and the base address


@dataclass(frozen=True)
class TensorRules:
    """What q, k and v must be for one layer of one model on one backend.

    num_q_heads, num_kv_heads: the whole model's; a call may bring one tensor-parallel shard of them. heads_per_list: q
    heads that share one list of blocks.
    dtypes: accepted torch dtypes. device: the device the kernels were resolved for, None for any.
    """

    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    heads_per_list: int
    dtypes: tuple[torch.dtype, ...]
    device: torch.device | None

    @property
    def group_size(self) -> int:
        """q heads that share one kv head."""
        return self.num_q_heads // self.num_kv_heads


def check_qkv(q: Tensor, k: Tensor, v: Tensor | None, rules: TensorRules, block_size: tuple[int, int]) -> BlockGrid:
    """Checks one call's tensors and returns its grid.

    q: [batch, seqlen_q, num_q_heads, head_dim]; k, v: [batch, seqlen_k, num_kv_heads, head_dim]; v None: q and k alone.
    Raises: TensorError for dtype, shape, stride, head count, length or grad; DeviceError for the wrong device.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x is not None:
            _check_one(name, x, rules)
    for name, x in (("k", k), ("v", v)):
        if x is not None and (x.dtype != q.dtype or x.device != q.device):
            raise TensorError(
                f"q is {q.dtype} on {q.device}, {name} is {x.dtype} on {x.device}",
                fix="give q, k and v one dtype and one device",
            )
    if v is not None and v.shape != k.shape:
        raise TensorError(f"v has shape {list(v.shape)}, k has {list(k.shape)}", fix="k and v must have the same shape")
    if k.shape[0] != q.shape[0]:
        raise TensorError(f"q has batch {q.shape[0]}, k has batch {k.shape[0]}", fix="give q, k and v one batch size")
    _check_heads(q.shape[2], k.shape[2], rules)
    if q.shape[1] > k.shape[1]:
        raise TensorError(
            f"seqlen_q {q.shape[1]} is greater than seqlen_k {k.shape[1]}",
            exists="bottom-right causal attention: query row r sees keys 0 .. r + seqlen_k - seqlen_q",
            fix="pass all keys up to the last query row (the cache and the new ones)",
        )
    return BlockGrid(q.shape[1], k.shape[1], *block_size)


def check_rotation(q: Tensor, k: Tensor, tables: tuple[Tensor, Tensor], k_out: Tensor | None, rotary_dim: int) -> None:
    """q and k of check_qkv before RoPE: the same tokens, tables for them, and room for rotated k if it is given.

    tables: cos and sin [batch or 1, num_tokens, rotary_dim / 2]. k_out: like k. Raises: TensorError.
    """
    if q.shape[1] != k.shape[1]:
        raise TensorError(
            f"q has {q.shape[1]} tokens, k has {k.shape[1]}",
            exists="the same new tokens of both, before RoPE",
            fix="leave out the keys that are in the KV cache already",
        )
    cos, sin = tables
    for name, table in (("cos", cos), ("sin", sin)):
        shape = list(table.shape)
        if shape not in ([n, q.shape[1], rotary_dim // 2] for n in (1, q.shape[0])):
            raise TensorError(
                f"{name} has shape {shape}",
                exists=f"[1 or {q.shape[0]}, {q.shape[1]} tokens, {rotary_dim // 2} pairs]",
                fix="pass one value a pair: the first half of the last dim of transformers' tables",
            )
        if table.dtype != q.dtype or table.device != q.device:
            raise TensorError(
                f"{name} is {table.dtype} on {table.device}, q is {q.dtype} on {q.device}",
                fix="give the tables q's dtype and device, as the model itself rotates",
            )
        check_strides(name, table)
    if sin.shape != cos.shape or sin.stride() != cos.stride():
        raise TensorError(
            f"sin has shape {list(sin.shape)} and strides {list(sin.stride())}, cos {list(cos.shape)} and"
            f" {list(cos.stride())}",
            fix="make both in the same way",
        )
    if k_out is None:
        return
    if k_out.shape != k.shape or k_out.dtype != k.dtype or k_out.device != k.device:
        raise TensorError(
            f"k_out is {k_out.dtype} {list(k_out.shape)} on {k_out.device}",
            exists=f"k's {k.dtype} {list(k.shape)} on {k.device}",
            fix="pass the places of these tokens in the KV cache",
        )
    check_strides("k_out", k_out)


def _check_one(name: str, x: Tensor, rules: TensorRules) -> None:
    if not isinstance(x, Tensor):
        raise TensorError(
            f"{name} is a {type(x).__name__}", exists="torch.Tensor", fix=f"pass {name} as a torch tensor"
        )
    if x.layout != torch.strided:
        raise TensorError(
            f"{name} is {x.layout}", exists="torch.strided, a dense tensor", fix=f"call {name}.to_dense()"
        )
    if x.dtype not in rules.dtypes:
        raise TensorError(
            f"{name} is {x.dtype}",
            exists=", ".join(str(d) for d in rules.dtypes),
            fix=f"convert {name}, or build the bundle for that dtype",
        )
    if rules.device is not None and x.device != rules.device:
        raise DeviceError(
            f"{name} is on {x.device}, this PrismAttention was resolved for {rules.device}",
            fix=f"move {name} there, or make a PrismAttention for {x.device}",
        )
    if x.dim() != 4 or x.shape[3] != rules.head_dim:
        raise TensorError(
            f"{name} has shape {list(x.shape)}",
            exists=f"[batch, seqlen, num_heads, head_dim={rules.head_dim}]",
            fix=f"bring {name} into that layout" if x.dim() != 4 else "choose the model that these tensors come from",
        )
    if 0 in x.shape:
        raise TensorError(
            f"{name} has shape {list(x.shape)}: an empty batch, no tokens or no heads",
            exists="batch >= 1, seqlen >= 1, num_heads >= 1",
            fix="skip the call when there is nothing to attend",
        )
    if x.requires_grad and torch.is_grad_enabled():
        raise TensorError(
            f"{name} requires grad",
            exists="forward only (prefill)",
            fix="call under torch.no_grad(), or detach() the tensor",
        )
    check_strides(name, x)


def check_strides(name: str, x: Tensor) -> None:
    """Last dim contiguous, other strides and the base address in 16-byte steps, none 0; size-1 dims may have any.

    Raises: TensorError.
    """
    if x.shape[-1] > 1 and x.stride(-1) != 1:
        raise TensorError(
            f"{name} has stride {x.stride(-1)} in its last dim",
            exists="stride 1 there",
            fix=f"call {name}.contiguous()",
        )
    step = ALIGN_BYTES // x.element_size()
    bad = [d for d in range(x.dim() - 1) if x.shape[d] > 1 and x.stride(d) % step]
    if bad:
        raise TensorError(
            f"{name} has strides {list(x.stride())} (elements); dim {bad[0]} is not a multiple of {ALIGN_BYTES} bytes",
            exists=f"multiples of {step} elements",
            fix=f"call {name}.contiguous()",
        )
    expanded = [d for d in range(x.dim() - 1) if x.shape[d] > 1 and x.stride(d) == 0]
    if expanded:  # the copy engine takes no stride of 0, and the other kernels keep to its rule
        raise TensorError(
            f"{name} is expanded: dim {expanded[0]} has stride 0",
            exists="strides greater than 0",
            fix=f"call {name}.contiguous()",
        )
    if x.data_ptr() % ALIGN_BYTES:
        raise TensorError(
            f"{name} starts at an address that is not a multiple of {ALIGN_BYTES} bytes",
            exists="16-byte aligned tensors",
            fix=f"call {name}.clone()",
        )


def _check_heads(num_q_heads: int, num_kv_heads: int, rules: TensorRules) -> None:
    whole_shard = rules.num_q_heads % num_q_heads == 0
    if num_q_heads != num_kv_heads * rules.group_size or not whole_shard:
        raise TensorError(
            f"{num_q_heads} q heads with {num_kv_heads} kv heads",
            exists=f"{rules.num_q_heads} q heads with {rules.num_kv_heads} kv heads ({rules.group_size} per"
            " kv head), or an equal tensor-parallel share of them",
            fix="pass k and v with their own heads (never repeated), and whole groups of q heads",
        )


def check_selection(selection: Selection, q: Tensor, grid: BlockGrid, heads_per_list: int) -> None:
    """A selection given by hand must be for these tensors: lengths, block sizes, heads, device, dtype, layout.

    The indices themselves are not read (that would synchronise): they must rise within a row and be visible blocks.
    Raises: TensorError.
    """
    if selection.grid != grid:
        raise TensorError(
            f"the selection is for {selection.grid}", exists=f"these tensors need {grid}", fix="select again"
        )
    rows = (q.shape[0], q.shape[2] // heads_per_list, grid.num_q_blocks)
    indices, counts = selection.block_indices, selection.block_counts
    if tuple(counts.shape) != rows or indices.dim() != 4 or tuple(indices.shape[:3]) != rows:
        raise TensorError(
            f"block_indices has shape {list(indices.shape)}, block_counts {list(counts.shape)}",
            exists=f"{[*rows, 'max_blocks']} and {list(rows)} for these tensors",
            fix=f"select for the same batch and heads, one list for {heads_per_list} q head(s)",
        )
    for name, x in (("block_indices", indices), ("block_counts", counts)):
        if x.dtype != torch.int32 or x.device != q.device or not x.is_contiguous():
            raise TensorError(
                f"{name} is {x.dtype} on {x.device}, {'' if x.is_contiguous() else 'not '}contiguous",
                exists=f"contiguous torch.int32 on {q.device}",
                fix="use Selection.from_mask, or what select returned",
            )


def check_scale(softmax_scale: float) -> float:
    """softmax_scale as a float. Raises: TensorError unless it is finite and positive."""
    try:
        scale = float(softmax_scale)
    except (TypeError, ValueError, RuntimeError):  # torch raises the last, for more than one element
        scale = math.nan
    if not (math.isfinite(scale) and scale > 0):
        raise TensorError(
            f"softmax_scale is {softmax_scale!r}",
            exists="a finite number above 0, multiplied with q k^T",
            fix="leave it out for the model's own (head_dim ** -0.5 for most)",
        )
    return scale
