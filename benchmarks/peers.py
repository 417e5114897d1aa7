"""Peers to measure beside prism-gen: each optional, imported only when asked for, on the same tensors and mask.

Owns how each peer is called. Must not time (timing.py does) and must not import prism_gen's kernels.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.masks import compact
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.selection import diagonal_blocks

Call = Callable[[], Any]
FA4_BLOCKS = ((128, 128), (128, 64))
PRISM_BLOCKS = ((128, 128), (64, 64))
PRISM_THRESHOLD = 0.95  # the paper's for Llama


@dataclass(frozen=True)
class Problem:
    """One attention call: q [1, seqlen_q, num_q_heads, head_dim], k, v likewise with num_kv_heads, contiguous.

    block_mask: bool [num_q_heads, num_q_blocks, num_k_blocks].
    """

    q: Tensor
    k: Tensor
    v: Tensor
    block_mask: Tensor
    grid: BlockGrid
    softmax_scale: float

    @property
    def block_sizes(self) -> tuple[int, int]:
        """(q, k) tokens."""
        return self.grid.block_size_q, self.grid.block_size_k

    @property
    def heads_first(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v as contiguous [1, heads, seqlen, head_dim]."""
        q, k, v = (x.transpose(1, 2).contiguous() for x in (self.q, self.k, self.v))
        return q, k, v


class Peer(NamedTuple):
    """One peer. sparse: it visits only the selected blocks, and its output must equal ours.

    unavailable: why it cannot run this problem here, "" if it can. prepare: conversions that are not timed; returns
    the call to time, whose result is out [1, seqlen_q, num_q_heads, head_dim].
    """

    name: str
    sparse: bool
    unavailable: Callable[[Problem], str]
    prepare: Callable[[Problem], Callable[[], Tensor]]


def _missing(module: str) -> str:
    """Says that a top-level module is not installed; "" if it is."""
    return "" if importlib.util.find_spec(module) else f"{module} is not installed"


def _without_cuda(problem: Problem) -> str:
    return "" if problem.q.is_cuda else "needs a GPU"


def split_diagonal(problem: Problem) -> tuple[Tensor, Tensor]:
    """The selected blocks that need the causal mask, and those that do not."""
    diagonal = diagonal_blocks(problem.grid, problem.q.device)
    return problem.block_mask & diagonal, problem.block_mask & ~diagonal


def _prepare_sdpa(backend: str) -> Callable[[Problem], Callable[[], Tensor]]:
    def prepare(problem: Problem) -> Callable[[], Tensor]:
        from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: PLC0415 optional peers import lazily

        q, k, v = problem.heads_first
        chosen = getattr(SDPBackend, backend)

        def call() -> Tensor:
            with sdpa_kernel(chosen):
                out = F.scaled_dot_product_attention(
                    q, k, v, is_causal=True, enable_gqa=True, scale=problem.softmax_scale
                )
            return out.transpose(1, 2)

        return call

    return prepare


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention  # noqa: PLC0415 optional peers import lazily

    return torch.compile(flex_attention, dynamic=False)


def _prepare_flex(problem: Problem) -> Callable[[], Tensor]:
    from torch.nn.attention.flex_attention import BlockMask  # noqa: PLC0415 optional peers import lazily

    q, k, v = problem.heads_first
    (partial_indices, partial_counts), (full_indices, full_counts) = (
        compact(mask[None], unused=0) for mask in split_diagonal(problem)
    )
    block_mask = BlockMask.from_kv_blocks(
        partial_counts,
        partial_indices,
        full_counts,
        full_indices,
        BLOCK_SIZE=problem.block_sizes,
        mask_mod=lambda _b, _h, q_index, k_index: q_index >= k_index,
        compute_q_blocks=False,
    )
    flex = _compiled_flex()
    return lambda: flex(q, k, v, block_mask=block_mask, enable_gqa=True, scale=problem.softmax_scale).transpose(1, 2)


def _prepare_fa4_sparse(problem: Problem) -> Callable[[], Tensor]:
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch  # noqa: PLC0415 optional peers import lazily
    from flash_attn.cute.interface import _flash_attn_fwd  # noqa: PLC0415

    from benchmarks.fa4_mask import causal  # noqa: PLC0415

    (partial_indices, partial_counts), (full_indices, full_counts) = (
        compact(mask[None], unused=0) for mask in split_diagonal(problem)
    )
    lists = BlockSparseTensorsTorch(
        partial_counts, partial_indices, full_counts, full_indices, block_size=problem.block_sizes
    )
    options: dict[str, Any] = {"causal": False, "mask_mod": causal, "block_sparse_tensors": lists, "pack_gqa": False}
    if problem.block_sizes != (128, 128):
        options["tile_mn"] = problem.block_sizes
    scale = problem.softmax_scale
    return lambda: _flash_attn_fwd(problem.q, problem.k, problem.v, softmax_scale=scale, **options)[0]


def _prepare_fa4_dense(problem: Problem) -> Callable[[], Tensor]:
    from flash_attn.cute.interface import _flash_attn_fwd  # noqa: PLC0415 optional peers import lazily

    scale = problem.softmax_scale
    return lambda: _flash_attn_fwd(problem.q, problem.k, problem.v, softmax_scale=scale, causal=True)[0]


def _fa4_unavailable(problem: Problem) -> str:
    return _missing("flash_attn") or _missing("cutlass") or _without_cuda(problem)


def _fa4_sparse_unavailable(problem: Problem) -> str:
    if problem.block_sizes not in FA4_BLOCKS:
        return f"offers blocks of {FA4_BLOCKS} only"
    return _fa4_unavailable(problem)


def prism_module(prism_src: str | None, name: str) -> ModuleType:
    """Module `name` of the official Prism checkout at prism_src, its root put on sys.path.

    Raises: ImportError if it is not there.
    """
    if prism_src and prism_src not in sys.path:
        sys.path.insert(0, prism_src)
    return importlib.import_module(name)


def prism_unavailable(prism_src: str | None, block_sizes: tuple[int, int]) -> str:
    """Why the official Prism cannot run here, "" if it can."""
    if prism_src is None or not (Path(prism_src) / "prism" / "prism.py").is_file():
        return "no checkout of the official Prism: give --prism-src"
    if block_sizes not in PRISM_BLOCKS:
        return f"offers blocks of {PRISM_BLOCKS} only"
    return "" if torch.cuda.is_available() else "needs a GPU"


def _prepare_prism(prism_src: str | None) -> Callable[[Problem], Callable[[], Tensor]]:
    def prepare(problem: Problem) -> Callable[[], Tensor]:
        attention = prism_module(prism_src, "prism.kernels.block_sparse_attn").block_sparse_attention
        q, k, v = problem.heads_first
        mask, size = problem.block_mask[None], problem.block_sizes[0]
        return lambda: attention(q, k, v, mask, size, True).transpose(1, 2)

    return prepare


def prism_estimate(prism_src: str | None, q: Tensor, k: Tensor, block_size: int) -> tuple[Call, Call]:
    """The official block selection as calls: as published, repeating K for each q head, and without that repeat.

    q, k: [1, seqlen, heads, head_dim]. Bands are the paper's: 1/2 and 3/4 of head_dim.
    """
    module = prism_module(prism_src, "prism.prism")
    q_heads, k_heads = (x.transpose(1, 2).contiguous() for x in (q, k))
    head_dim, group_size = q.shape[-1], q.shape[2] // k.shape[2]
    options = {
        "low_freq_dim": head_dim * 3 // 4,
        "high_freq_dim": head_dim // 2,
        "block_size": block_size,
        "low_freq_threshold": PRISM_THRESHOLD,
        "high_freq_threshold": PRISM_THRESHOLD,
        "calibrate": True,
    }
    repeated = module.repeat_kv(k_heads, group_size)
    return (
        lambda: module.prism_block_estimate(q_heads, module.repeat_kv(k_heads, group_size), **options),
        lambda: module.prism_block_estimate(q_heads, repeated, **options),
    )


def attend_peers(prism_src: str | None = None) -> dict[str, Peer]:
    """Every peer of attend by name. prism_src: a checkout of github.com/xinghaow99/prism."""
    rows = (
        Peer("cudnn-dense", False, _without_cuda, _prepare_sdpa("CUDNN_ATTENTION")),
        Peer("flash2-dense", False, _without_cuda, _prepare_sdpa("FLASH_ATTENTION")),
        Peer("flex-sparse", True, _without_cuda, _prepare_flex),
        Peer("fa4-sparse", True, _fa4_sparse_unavailable, _prepare_fa4_sparse),
        Peer("fa4-dense", False, _fa4_unavailable, _prepare_fa4_dense),
        Peer("prism-sparse", True, lambda p: prism_unavailable(prism_src, p.block_sizes), _prepare_prism(prism_src)),
    )
    return {row.name: row for row in rows}
