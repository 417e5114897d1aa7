"""FlashAttention-4 as a peer: its block-sparse kernel on our lists, and its dense one.

Owns how it is called and what its sm90 kernels offer. Must not time.
Source: flash_attn.cute of flash-attn-4 4.0.0b36 (interface.py, block_sparsity.py, block_sparse_utils.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from benchmarks.masks import compact
from benchmarks.peers.problem import Problem, missing, split_diagonal, without_cuda

BLOCKS = ((128, 128), (128, 64))
# A list's key block is exactly one key tile on sm90. Beside the query tile, two stages of 128 keys of K and V take
# 240 KiB at head_dim 192 and 320 KiB at 256, more than the 227 KiB of a block.
WIDE_HEAD_DIM, WIDE_BLOCKS = 192, ((128, 64),)
MAX_HEAD_DIM = 256


def unavailable(problem: Problem) -> str:
    """Why neither kernel can run this problem here, "" if both can."""
    head_dim = problem.q.shape[-1]
    if head_dim > MAX_HEAD_DIM or head_dim % 8:
        return f"offers head_dim up to {MAX_HEAD_DIM} in steps of 8 only"
    return missing("flash_attn") or missing("cutlass") or without_cuda(problem)


def sparse_unavailable(problem: Problem) -> str:
    """Why the block-sparse kernel cannot run this problem here, "" if it can.

    Lists of a KV group run as the same list for each of its q heads, where a query block has 128 positions; its packed
    GQA takes one list for all KV heads only.
    """
    offered = WIDE_BLOCKS if problem.q.shape[-1] >= WIDE_HEAD_DIM else BLOCKS
    if problem.block_sizes not in offered:
        return f"offers blocks of {offered} only"
    return unavailable(problem)


def tile_options(problem: Problem) -> dict[str, Any]:
    """tile_mn of the block-sparse kernel, left out where its own table has a row for the block sizes."""
    return {} if problem.block_sizes == (128, 128) else {"tile_mn": problem.block_sizes}


def prepare_sparse(problem: Problem) -> Callable[[], Tensor]:
    """The block-sparse kernel: diagonal blocks under a mask function, the others whole."""
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch  # noqa: PLC0415 optional peers import lazily
    from flash_attn.cute.interface import _flash_attn_fwd  # noqa: PLC0415

    from benchmarks.peers.fa4_mask import causal  # noqa: PLC0415

    (partial_indices, partial_counts), (full_indices, full_counts) = (
        compact(mask[None], unused=0) for mask in split_diagonal(problem)
    )
    lists = BlockSparseTensorsTorch(
        partial_counts, partial_indices, full_counts, full_indices, block_size=problem.block_sizes
    )
    options: dict[str, Any] = {"causal": False, "mask_mod": causal, "block_sparse_tensors": lists, "pack_gqa": False}
    options |= tile_options(problem)
    scale = problem.softmax_scale
    return lambda: _flash_attn_fwd(problem.q, problem.k, problem.v, softmax_scale=scale, **options)[0]


def prepare_dense(problem: Problem) -> Callable[[], Tensor]:
    """The dense causal kernel, tiles by its own table."""
    from flash_attn.cute.interface import _flash_attn_fwd  # noqa: PLC0415 optional peers import lazily

    scale = problem.softmax_scale
    return lambda: _flash_attn_fwd(problem.q, problem.k, problem.v, softmax_scale=scale, causal=True)[0]
