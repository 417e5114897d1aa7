"""FlashAttention-4 as a peer: its block-sparse kernel on our lists, the same on packed rows, and its dense kernel.

Owns how it is called and what its sm90 kernels offer. Must not time.
Source: flash_attn.cute of flash-attn-4 4.0.0b36 (interface.py, block_sparsity.py, block_sparse_utils.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from prism_gen.bench.peers.problem import missing, split_diagonal, without_cuda
from prism_gen.runtime.selection import diagonal_blocks
from prism_gen.verify.masks import compact
from prism_gen.verify.problem import Problem

TILE_ROWS, TILE_KEYS = (128, 64), (128, 64)  # what the kernel was run with on an H200, the larger first
KV_STAGES = 2  # fixed in interface.py
SMEM_BYTES = 226 << 10  # of the 227 KiB of a CTA, less its barriers
MAX_HEAD_DIM = 256


def unavailable(problem: Problem) -> str:
    """Why none of its kernels can run this problem here, "" if they can."""
    head_dim = problem.q.shape[-1]
    if head_dim > MAX_HEAD_DIM or head_dim % 8:
        return f"offers head_dim up to {MAX_HEAD_DIM} in steps of 8 only"
    return missing("flash_attn") or missing("cutlass") or without_cuda(problem)


def tile_mn(problem: Problem, rows_per_position: int) -> tuple[int, int] | None:
    """The tile (query rows, keys) that walks the lists, None if there is none.

    A list's key block is exactly one key tile on sm90, its query block one or more query tiles.
    """
    block_rows, keys = problem.grid.block_size_q * rows_per_position, problem.grid.block_size_k
    rows = next((rows for rows in TILE_ROWS if block_rows % rows == 0), None)
    if rows is None or keys not in TILE_KEYS:
        return None
    row_bytes = problem.q.shape[-1] * problem.q.element_size()
    return (rows, keys) if (rows + 2 * KV_STAGES * keys) * row_bytes <= SMEM_BYTES else None


def _tiles_refused(problem: Problem, rows_per_position: int) -> str:
    if tile_mn(problem, rows_per_position):
        return ""
    return f"offers tiles of {TILE_ROWS} rows by blocks of {TILE_KEYS} keys only, in 227 KiB of shared memory"


def sparse_unavailable(problem: Problem) -> str:
    """Why the block-sparse kernel cannot run this problem here, "" if it can.

    Lists of a KV group run as one list for each of its q heads, where a query block has 64 or 128 positions.
    """
    return _tiles_refused(problem, 1) or unavailable(problem)


def packed_unavailable(problem: Problem) -> str:
    """Why the block-sparse kernel cannot run the packed rows of this problem here, "" if it can."""
    if problem.block_mask.shape[0] != problem.k.shape[2]:
        return "takes one list per KV head, and this problem has one per q head"
    return _tiles_refused(problem, problem.group_size) or unavailable(problem)


def _sparse_call(
    q: Tensor, k: Tensor, v: Tensor, masks: tuple[Tensor, Tensor], problem: Problem
) -> Callable[[], Tensor]:
    """The block-sparse kernel: blocks under a mask function, and whole ones.

    masks: bool [batch, heads of q, tiles, key tiles] each.
    """
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch  # noqa: PLC0415 optional peers import lazily
    from flash_attn.cute.interface import _flash_attn_fwd  # noqa: PLC0415

    from prism_gen.bench.peers.fa4_mask import causal  # noqa: PLC0415

    (partial_indices, partial_counts), (full_indices, full_counts) = (compact(mask, unused=0) for mask in masks)
    rows_per_position = q.shape[1] // problem.q.shape[1]
    blocks = (problem.grid.block_size_q * rows_per_position, problem.grid.block_size_k)
    options: dict[str, Any] = {
        "causal": False,
        "mask_mod": causal(rows_per_position),
        "block_sparse_tensors": BlockSparseTensorsTorch(
            partial_counts, partial_indices, full_counts, full_indices, block_size=blocks
        ),
        "pack_gqa": False,  # its own packing takes one list for all KV heads only
        # Given even where its table has the same tile: at head_dim 96 the options that come with it are 4 % slower.
        "tile_mn": tile_mn(problem, rows_per_position),
    }
    return lambda: _flash_attn_fwd(q, k, v, softmax_scale=problem.softmax_scale, **options)[0]


def prepare_sparse(problem: Problem) -> Callable[[], Tensor]:
    """The block-sparse kernel on the lists of each q head."""
    partial, full = split_diagonal(problem)
    return _sparse_call(problem.q, problem.k, problem.v, (partial[None], full[None]), problem)


def pack_rows(q: Tensor, num_kv_heads: int) -> Tensor:
    """q [1, seqlen_q, num_q_heads, head_dim] -> rows position * group_size + head of each KV head as a batch entry.

    Returns [num_kv_heads, seqlen_q * group_size, 1, head_dim], contiguous.
    """
    _, seqlen_q, num_q_heads, head_dim = q.shape
    by_kv_head = q.view(seqlen_q, num_kv_heads, num_q_heads // num_kv_heads, head_dim).transpose(0, 1)
    return by_kv_head.reshape(num_kv_heads, -1, 1, head_dim).contiguous()


def unpack_rows(rows: Tensor, seqlen_q: int) -> Tensor:
    """The inverse as a view: [1, seqlen_q, num_kv_heads, group_size, head_dim], which reshapes to q's shape."""
    return rows.view(rows.shape[0], seqlen_q, -1, rows.shape[-1]).transpose(0, 1)[None]


def prepare_packed(problem: Problem) -> Callable[[], Tensor]:
    """The block-sparse kernel on lists of a KV group, which it does not offer: each group as one head of packed rows.

    Packing q and unpacking the output are not timed; at 128K they would move 4 GB.
    """
    rows = pack_rows(problem.q, problem.k.shape[2])
    k, v = (x[0].transpose(0, 1)[:, :, None].contiguous() for x in (problem.k, problem.v))
    diagonal = diagonal_blocks(problem.grid, rows.device)
    masks = ((problem.block_mask & diagonal)[:, None], (problem.block_mask & ~diagonal)[:, None])
    call = _sparse_call(rows, k, v, masks, problem)
    return lambda: unpack_rows(call(), problem.grid.seqlen_q)


def prepare_dense(problem: Problem) -> Callable[[], Tensor]:
    """The dense causal kernel, tiles by its own table."""
    from flash_attn.cute.interface import _flash_attn_fwd  # noqa: PLC0415 optional peers import lazily

    scale = problem.softmax_scale
    return lambda: _flash_attn_fwd(problem.q, problem.k, problem.v, softmax_scale=scale, causal=True)[0]
