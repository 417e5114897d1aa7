"""What a peer is, and the words for why it cannot run a problem.

Owns the type that every peer shares. Must not know any peer.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from prism_gen.runtime.selection import diagonal_blocks
from prism_gen.verify.problem import Problem

PEER_TOLERANCE = 2e-2  # norm of the difference / norm: two bf16 roundings are below 5e-3


class Peer(NamedTuple):
    """One peer. sparse: it visits only the selected blocks, and its output must equal ours.

    unavailable: why it cannot run this problem here, "" if it can. prepare: conversions that are not timed; returns
    the call to time, whose result is out [1, seqlen_q, num_q_heads, head_dim], or a view that reshapes to it.
    """

    name: str
    sparse: bool
    unavailable: Callable[[Problem], str]
    prepare: Callable[[Problem], Callable[[], Tensor]]


def missing(module: str) -> str:
    """Says that a top-level module is not installed; "" if it is."""
    return "" if importlib.util.find_spec(module) else f"{module} is not installed"


def without_cuda(problem: Problem) -> str:
    """Says that the problem is not on a GPU; "" if it is."""
    return "" if problem.q.is_cuda else "needs a GPU"


def with_prefix(problem: Problem) -> str:
    """Says that the problem has keys before its first query; "" if the lengths are equal."""
    return "offers equal lengths of q and k only" if problem.grid.prefix else ""


def split_diagonal(problem: Problem) -> tuple[Tensor, Tensor]:
    """The selected blocks of each q head that need the causal mask, and those that do not."""
    diagonal = diagonal_blocks(problem.grid, problem.q.device)
    mask = problem.head_mask
    return mask & diagonal, mask & ~diagonal


def distance(theirs: Tensor, ours: Tensor) -> float:
    """Norm of the difference over the norm of ours. theirs: as Peer.prepare's call returns it."""
    return float((theirs.reshape(ours.shape).float() - ours.float()).norm() / ours.float().norm())


def differs(found: float) -> str:
    """Says that a distance is no rounding; "" if it may be one."""
    return "" if found <= PEER_TOLERANCE else f"the output differs from ours by {found:.3g} of its norm"
