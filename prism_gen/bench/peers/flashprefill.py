"""FlashPrefill V2 as a peer: its packed-GQA block-sparse forward on lists that the q heads of a KV head share.

Owns how our lists become its own, and when that is possible. Must not time, compile, or hold any of its code.
Source: github.com/qhfan/FlashPrefillv2 0f8e791, flashprefill_ops. Users install that with its install_ops.sh. Here
tools/build_flashprefill.py compiles flashprefill.cu, which calls the same kernel, against a checkout with the flags of
its setup.py: one kernel instead of all, and no torch to compile against. Its correction by block means is left off,
since it changes the output, and so are pages: K and V come through TMA.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prism_gen.bench.peers.problem import without_cuda
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.selection import visible_blocks
from prism_gen.verify.problem import Problem

# The tile of every sm90 kernel of its tile_size.h: packed rows (position * group_size + head) by keys.
TILE_ROWS, TILE_KEYS = 128, 64
HEAD_DIM, DTYPE = 128, torch.bfloat16  # of the one kernel in flashprefill.cu
SM90 = (9, 0)


class TileLists(NamedTuple):
    """One rising run of key tiles for each tile of packed rows, KV head by KV head.

    offsets: int32 [num_kv_heads * num_tiles + 1] into indices, int32 [all runs].
    """

    offsets: Tensor
    indices: Tensor
    num_tiles: int


def tile_lists(problem: Problem) -> TileLists:
    """The blocks of each list as its tiles: block_size_q * group_size / 128 tiles, each with every visible key tile."""
    grid, mask = problem.grid, problem.block_mask
    tiles = BlockGrid(grid.seqlen_q, grid.seqlen_k, TILE_ROWS // problem.group_size, TILE_KEYS)
    mask = mask.repeat_interleave(grid.block_size_q // tiles.block_size_q, 1)[:, : tiles.num_q_blocks]
    mask = mask.repeat_interleave(grid.block_size_k // tiles.block_size_k, 2)[..., : tiles.num_k_blocks]
    mask = mask & visible_blocks(tiles, mask.device)
    offsets = torch.zeros(mask[..., 0].numel() + 1, dtype=torch.int32, device=mask.device)
    offsets[1:] = mask.sum(-1).flatten().cumsum(0)
    return TileLists(offsets, mask.nonzero()[:, 2].int(), tiles.num_q_blocks)


def lists_unavailable(problem: Problem) -> str:
    """Why its lists cannot stand for ours, "" if they can.

    Its kernels without packing are no way to lists per q head: in mainloop_fwd_sm90_tma_gmma_ws.hpp the loader takes
    the list of a q head and the multiplying warps that of its KV head.
    """
    if problem.block_mask.shape[0] != problem.k.shape[2]:
        return "takes one list per KV head, and this problem has one per q head"
    block_size_q, block_size_k = problem.block_sizes
    if TILE_ROWS % problem.group_size or block_size_q * problem.group_size % TILE_ROWS or block_size_k % TILE_KEYS:
        return f"offers tiles of {TILE_ROWS} packed rows and {TILE_KEYS} keys only"
    return ""


def unavailable(library: str | None, problem: Problem) -> str:
    """Why it cannot run this problem here, "" if it can. library: made by tools/build_flashprefill.py."""
    if library is None or not Path(library).is_file():
        return "no library of FlashPrefill V2: make one with tools/build_flashprefill.py and give --flashprefill-lib"
    if (problem.q.shape[-1], problem.q.dtype) != (HEAD_DIM, DTYPE):
        return f"its library holds head_dim {HEAD_DIM}, bf16 only"
    if reason := lists_unavailable(problem) or without_cuda(problem):
        return reason
    return "" if torch.cuda.get_device_capability(problem.q.device) == SM90 else "needs compute capability 9.0"


@cache
def _library(path: str) -> Any:
    import tvm_ffi  # noqa: PLC0415 optional peers import lazily

    return tvm_ffi.load_module(str(Path(path).resolve()))  # dlopen looks for a bare name in the system's folders only


def prepare(library: str | None) -> Callable[[Problem], Callable[[], Tensor]]:
    """Its forward on our lists; the library ends the process on a CUDA error, as the checkout's own checks do."""

    def prepare_problem(problem: Problem) -> Callable[[], Tensor]:
        attend = _library(str(library)).attend
        q, k, v, scale = problem.q, problem.k, problem.v, problem.softmax_scale
        lists = tile_lists(problem)
        out = torch.full_like(q, float("nan"))
        lse = torch.empty(1, q.shape[2], q.shape[1], dtype=torch.float32, device=q.device)
        counter = torch.zeros(1, dtype=torch.int32, device=q.device)

        def call() -> Tensor:
            attend(q, k, v, out, lse, lists.offsets, lists.indices, lists.num_tiles, scale, counter)
            return out

        return call

    return prepare_problem
