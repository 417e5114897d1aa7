"""FlashAttention 2 and 3 as peers: their dense causal kernels, where the user has installed them.

Owns how they are called. Must not time.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

from torch import Tensor

from prism_gen.bench.peers.problem import missing, without_cuda
from prism_gen.verify.problem import Problem

# What holds version 3's call: the official package, or fa3-fwd, which has its forward alone as a wheel for CUDA 13.
V3_MODULES = ("flash_attn_interface", "fa3_fwd_interface")


def v2_unavailable(problem: Problem) -> str:
    """Why version 2 cannot run here, "" if it can. flash_attn alone may be version 4, which has the same folder."""
    return missing("flash_attn_2_cuda") or without_cuda(problem)


def v3_unavailable(problem: Problem) -> str:
    """Why version 3 cannot run here, "" if it can."""
    return ("" if _v3_module() else missing(V3_MODULES[0])) or without_cuda(problem)


def _v3_module() -> str | None:
    return next((name for name in V3_MODULES if importlib.util.find_spec(name)), None)


def prepare_v2(problem: Problem) -> Callable[[], Tensor]:
    """flash_attn_func of flash-attn 2."""
    from flash_attn import flash_attn_func  # noqa: PLC0415 optional peers import lazily

    q, k, v, scale = problem.q, problem.k, problem.v, problem.softmax_scale
    return lambda: flash_attn_func(q, k, v, softmax_scale=scale, causal=True)


def prepare_v3(problem: Problem) -> Callable[[], Tensor]:
    """flash_attn_func of flash-attn 3, which older releases return with its log-sum-exp."""
    flash_attn_func = importlib.import_module(_v3_module() or V3_MODULES[0]).flash_attn_func
    q, k, v, scale = problem.q, problem.k, problem.v, problem.softmax_scale

    def call() -> Tensor:
        given = flash_attn_func(q, k, v, softmax_scale=scale, causal=True)
        out: Tensor = given[0] if isinstance(given, tuple) else given
        return out

    return call
