"""FlashAttention 2 and 3 as peers: their dense causal kernels, where the user has installed them.

Owns how they are called. Must not time.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from prism_gen.bench.peers.problem import missing, without_cuda
from prism_gen.verify.problem import Problem


def unavailable(module: str, problem: Problem) -> str:
    """Why it cannot run here, "" if it can. module: what only that version installs."""
    return missing(module) or without_cuda(problem)


def prepare_v2(problem: Problem) -> Callable[[], Tensor]:
    """flash_attn_func of flash-attn 2."""
    from flash_attn import flash_attn_func  # noqa: PLC0415 optional peers import lazily

    q, k, v, scale = problem.q, problem.k, problem.v, problem.softmax_scale
    return lambda: flash_attn_func(q, k, v, softmax_scale=scale, causal=True)


def prepare_v3(problem: Problem) -> Callable[[], Tensor]:
    """flash_attn_func of flash-attn 3, which older releases return with its log-sum-exp."""
    from flash_attn_interface import flash_attn_func  # noqa: PLC0415 optional peers import lazily

    q, k, v, scale = problem.q, problem.k, problem.v, problem.softmax_scale

    def call() -> Tensor:
        given = flash_attn_func(q, k, v, softmax_scale=scale, causal=True)
        out: Tensor = given[0] if isinstance(given, tuple) else given
        return out

    return call
