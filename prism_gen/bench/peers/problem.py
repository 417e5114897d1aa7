"""What a peer is given and what it is: one attention problem, one peer, and the words for why it cannot run.

Owns the two types that every peer shares. Must not know any peer.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.selection import diagonal_blocks, visible_blocks
from prism_gen.verify.masks import attend_flops


@dataclass(frozen=True)
class Problem:
    """One attention call: q [1, seqlen_q, num_q_heads, head_dim], k, v likewise with num_kv_heads, contiguous.

    block_mask: bool [num_lists, num_q_blocks, num_k_blocks]; num_lists is num_q_heads, or num_kv_heads where the q
    heads of a KV head share their list. block_size_q counts positions either way.
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
    def group_size(self) -> int:
        """Q heads of one KV head."""
        return self.q.shape[2] // self.k.shape[2]

    @property
    def heads_per_list(self) -> int:
        """Q heads that share a row of block_mask."""
        return self.q.shape[2] // self.block_mask.shape[0]

    @property
    def head_mask(self) -> Tensor:
        """The mask of each q head: [num_q_heads, num_q_blocks, num_k_blocks] bool."""
        shared = self.heads_per_list
        return self.block_mask if shared == 1 else self.block_mask.repeat_interleave(shared, 0)

    @property
    def selected_flops(self) -> float:
        """FLOPs of all q heads on their selected blocks, as attend_flops counts."""
        return self.heads_per_list * attend_flops(self.block_mask, self.grid, self.q.shape[-1])

    @property
    def dense_flops(self) -> float:
        """FLOPs of all q heads on every visible block."""
        visible = visible_blocks(self.grid, self.q.device)[None]
        return self.q.shape[2] * attend_flops(visible, self.grid, self.q.shape[-1])

    @property
    def heads_first(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v as contiguous [1, heads, seqlen, head_dim]."""
        q, k, v = (x.transpose(1, 2).contiguous() for x in (self.q, self.k, self.v))
        return q, k, v


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
