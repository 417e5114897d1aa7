"""The right arguments of every raw export, for one small problem a family.

Owns those problems. Must not know what a mistake is (arguments.py does).
"""

from __future__ import annotations

from typing import Any

import torch

from prism_gen.families.score import TILE_COLUMNS
from prism_gen.runtime.reference_pool import granules_per_block
from prism_gen.verify.cases import Case
from prism_gen.verify.kernels import Kernel, bands_of
from prism_gen.verify.masks import compact
from prism_gen.verify.rotation import rope_tables
from prism_gen.verify.select_cases import SelectCase
from prism_gen.verify.selection import band_energy
from prism_gen.verify.subblock_cases import SubBlockCase, in_tile_order

TOKENS = Case(200, 300, num_q_heads=4, num_kv_heads=2)
BLOCKS = SelectCase(200, 300, num_q_heads=4, num_kv_heads=2)
SUB_BLOCKS = SubBlockCase(2000, 3000)


def _attend_arguments(kernel: Kernel, device: torch.device) -> dict[str, Any]:
    problem = kernel.problem
    case = TOKENS.shared_by(problem.heads_per_list)
    q, k, v = case.qkv(problem.head_dim, kernel.dtype, device)
    grid = case.grid(problem.block_size_q, problem.block_size_k)
    indices, counts = compact(case.block_mask(grid, device, problem.heads_per_list))
    return {
        "q": q,
        "k": k,
        "v": v,
        "out": torch.empty(q.shape, dtype=q.dtype, device=device),
        "lse": torch.empty(q.shape[0], q.shape[2], q.shape[1], device=device),
        "block_indices": indices,
        "block_counts": counts,
        "softmax_scale": 0.1,
        "tile_counter": torch.zeros(1, dtype=torch.int32, device=device),
    }


def _pool_arguments(kernel: Kernel, device: torch.device) -> dict[str, Any]:
    head_dim, sizes, start = kernel.problem.head_dim, (128, 64), 100
    q, k, _ = TOKENS.qkv(head_dim, kernel.dtype, device)
    q_rows = (1, q.shape[2], -(-q.shape[1] // sizes[0]))
    k_rows = (1, k.shape[2], -(-(start + k.shape[1]) // sizes[1]))
    tail = (*k_rows[:2], granules_per_block(sizes[1]), head_dim)
    return {
        "q": q,
        "k": k,
        "q_mean": torch.empty(*q_rows, head_dim, device=device),
        "q_energy": torch.empty(*q_rows, 3, device=device),
        "k_mean": torch.empty(*k_rows, head_dim, device=device),
        "k_energy": torch.empty(*k_rows, 3, device=device),
        "block_size_q": sizes[0],
        "block_size_k": sizes[1],
        "k_start": start,
        "tail_in": torch.zeros(tail, device=device),
        "tail_out": torch.empty(tail, device=device),
    }


def _rotate_arguments(kernel: Kernel, device: torch.device) -> dict[str, Any]:
    pooled = _pool_arguments(kernel, device)
    q, k = pooled.pop("q"), pooled.pop("k")
    q = torch.cat([q, q], 1)[:, : k.shape[1]].contiguous()
    blocks = -(-q.shape[1] // pooled["block_size_q"])
    pooled["q_mean"], pooled["q_energy"] = (
        torch.empty(1, q.shape[2], blocks, width, device=device) for width in (q.shape[3], 3)
    )
    cos, sin = (table.contiguous() for table in rope_tables(kernel, k.shape[1], pooled["k_start"], device))
    outs = {"q_out": torch.empty_like(q), "k_out": torch.empty_like(k)}
    return {"q": q, "k": k, "cos": cos, "sin": sin, **outs, **pooled}


def _select_arguments(kernel: Kernel, device: torch.device) -> dict[str, Any]:
    grid, bands = BLOCKS.grid, bands_of(kernel.problem)
    q_mean, k_mean = BLOCKS.means(kernel.problem.head_dim, device)
    rows = (1, BLOCKS.num_q_heads, grid.num_q_blocks)
    floats = kernel.scratch_floats(*BLOCKS.scratch_sizes) if kernel.scratch_floats else 0
    return {
        "q_mean": q_mean,
        "k_mean": k_mean,
        "q_energy": band_energy(q_mean, bands),
        "k_energy": band_energy(k_mean, bands),
        "thresholds": BLOCKS.thresholds(device),
        "block_size_q": grid.block_size_q,
        "block_size_k": grid.block_size_k,
        "seqlen_q": grid.seqlen_q,
        "seqlen_k": grid.seqlen_k,
        "force_sink": 1,
        "force_recent": 1,
        "share_group": 0,
        "prefix_calibration": 0,
        "cut_kind": 0,
        "block_indices": torch.empty(*rows, grid.num_k_blocks, dtype=torch.int32, device=device),
        "block_counts": torch.empty(rows, dtype=torch.int32, device=device),
        "wanted_counts": torch.empty(rows, dtype=torch.int32, device=device),
        "probs": None,
        "scratch": torch.empty(floats, device=device) if floats else None,
    }


def _subpool_arguments(kernel: Kernel, device: torch.device) -> dict[str, Any]:
    head_dim, sizes = kernel.problem.head_dim, (4, 16)
    q, k, _ = TOKENS.qkv(head_dim, kernel.dtype, device)
    k_rows = -(-(20 + k.shape[1]) // (sizes[1] * TILE_COLUMNS)) * TILE_COLUMNS
    return {
        "q": q,
        "k": k,
        "q_sub": torch.empty(1, q.shape[2], -(-q.shape[1] // sizes[0]), head_dim, dtype=torch.float16, device=device),
        "k_sub": torch.empty(1, k.shape[2], k_rows, head_dim, dtype=torch.float16, device=device),
        "sub_block_q": sizes[0],
        "sub_block_k": sizes[1],
        "k_start": 20,
        "tail_in": torch.zeros(1, k.shape[2], 1, head_dim, device=device),
        "tail_out": torch.empty(1, k.shape[2], 1, head_dim, device=device),
    }


def _score_arguments(kernel: Kernel, device: torch.device) -> dict[str, Any]:
    case = SUB_BLOCKS
    q, k = case.sub_means(kernel.problem.head_dim, device)
    grid, lengths = case.grid(kernel.problem), (case.seqlen_q, case.seqlen_k)
    rows, sizes = (1, case.num_q_heads, grid.num_q_blocks), (case.sub_block_q, case.sub_block_k)
    heads = (case.num_q_heads, case.num_kv_heads)
    floats = kernel.scratch_floats(1, *heads, *sizes, *lengths, device.index or 0) if kernel.scratch_floats else 0
    return {
        "q_sub": q,
        "k_sub": in_tile_order(k),
        "thresholds": case.thresholds(device),
        "softmax_scale": 0.1,
        "sub_block_q": sizes[0],
        "sub_block_k": sizes[1],
        "seqlen_q": lengths[0],
        "seqlen_k": lengths[1],
        "force_sink": 1,
        "force_recent": 1,
        "share_group": 0,
        "reduce_mean": 0,
        "exclude_forced": 0,
        "cut_kind": 0,
        "block_indices": torch.empty(*rows, grid.num_k_blocks, dtype=torch.int32, device=device),
        "block_counts": torch.empty(rows, dtype=torch.int32, device=device),
        "wanted_counts": torch.empty(rows, dtype=torch.int32, device=device),
        "probs": None,
        "scratch": torch.empty(floats, device=device),
    }


ARGUMENTS = {
    "attend": _attend_arguments,
    "pool": _pool_arguments,
    "rotate": _rotate_arguments,
    "select": _select_arguments,
    "subpool": _subpool_arguments,
    "score": _score_arguments,
}
