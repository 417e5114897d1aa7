"""torch's own attention as peers: scaled_dot_product_attention by backend, and FlexAttention on the lists.

Owns how they are called. Must not time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prism_gen.bench.peers.problem import split_diagonal
from prism_gen.verify.masks import compact
from prism_gen.verify.problem import Problem


def prepare_sdpa(backend: str) -> Callable[[Problem], Callable[[], Tensor]]:
    """Dense causal attention by one backend of SDPBackend, named as there."""

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


MAX_SHAPES = 256  # that one process may compile FlexAttention for; past torch's own 8 it would run without fusion


@cache
def _compiled_flex() -> Any:
    from torch._dynamo import config  # noqa: PLC0415 optional peers import lazily
    from torch.nn.attention.flex_attention import flex_attention  # noqa: PLC0415

    # Its name up to torch 2.5 was cache_size_limit.
    setattr(config, "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit", MAX_SHAPES)
    return torch.compile(flex_attention, dynamic=False)


def _causal(_batch: Tensor, _head: Tensor, q_index: Tensor, k_index: Tensor) -> Tensor:
    return q_index >= k_index


def prepare_flex(problem: Problem) -> Callable[[], Tensor]:
    """FlexAttention on the same blocks."""
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
        mask_mod=_causal,
        compute_q_blocks=False,
    )
    flex = _compiled_flex()
    return lambda: flex(q, k, v, block_mask=block_mask, enable_gqa=True, scale=problem.softmax_scale).transpose(1, 2)
