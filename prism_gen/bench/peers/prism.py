"""The official Prism as a peer: its block-sparse Triton kernel, its block selection, and a whole layer of both.

Owns how a checkout of github.com/xinghaow99/prism is imported and called. Must not time.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from prism_gen.verify.problem import Problem

Call = Callable[[], Any]
BLOCKS = ((128, 128), (64, 64))
THRESHOLD = 0.95  # the paper's for Llama


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
    if block_sizes not in BLOCKS:
        return f"offers blocks of {BLOCKS} only"
    return "" if torch.cuda.is_available() else "needs a GPU"


def prepare_prism(prism_src: str | None) -> Callable[[Problem], Callable[[], Tensor]]:
    """The official block-sparse Triton kernel on the mask of each q head."""

    def prepare(problem: Problem) -> Callable[[], Tensor]:
        attention = prism_module(prism_src, "prism.kernels.block_sparse_attn").block_sparse_attention
        q, k, v = problem.heads_first
        mask, size = problem.head_mask[None], problem.block_sizes[0]
        return lambda: attention(q, k, v, mask, size, True).transpose(1, 2)

    return prepare


def _estimate(prism_src: str | None, head_dim: int, block_size: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Its block selection of q and k [1, num_q_heads, seqlen, head_dim] each. Bands are the paper's, 1/2 and 3/4."""
    return partial(
        prism_module(prism_src, "prism.prism").prism_block_estimate,
        low_freq_dim=head_dim * 3 // 4,
        high_freq_dim=head_dim // 2,
        block_size=block_size,
        low_freq_threshold=THRESHOLD,
        high_freq_threshold=THRESHOLD,
        calibrate=True,
    )


def prism_estimate(prism_src: str | None, q: Tensor, k: Tensor, block_size: int) -> tuple[Call, Call]:
    """The official block selection as calls: as published, repeating K for each q head, and without that repeat.

    q, k: [1, seqlen, heads, head_dim].
    """
    repeat_kv = prism_module(prism_src, "prism.prism").repeat_kv
    estimate = _estimate(prism_src, q.shape[-1], block_size)
    q_heads, k_heads = (x.transpose(1, 2).contiguous() for x in (q, k))
    group_size = q.shape[2] // k.shape[2]
    repeated = repeat_kv(k_heads, group_size)
    return lambda: estimate(q_heads, repeat_kv(k_heads, group_size)), lambda: estimate(q_heads, repeated)


def prism_layer(prism_src: str | None, q: Tensor, k: Tensor, v: Tensor, block_size: int) -> Call:
    """The official layer as published: K and V repeated for each q head, blocks chosen, attention on them.

    q, k, v: as for prism_estimate. The call returns out [1, seqlen, num_q_heads, head_dim].
    """
    repeat_kv = prism_module(prism_src, "prism.prism").repeat_kv
    attention = prism_module(prism_src, "prism.kernels.block_sparse_attn").block_sparse_attention
    estimate = _estimate(prism_src, q.shape[-1], block_size)
    q_heads, k_heads, v_heads = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    group_size = q.shape[2] // k.shape[2]

    def call() -> Tensor:
        k_all, v_all = repeat_kv(k_heads, group_size), repeat_kv(v_heads, group_size)
        out: Tensor = attention(q_heads, k_all, v_all, estimate(q_heads, k_all), block_size, True)
        return out.transpose(1, 2)

    return call
