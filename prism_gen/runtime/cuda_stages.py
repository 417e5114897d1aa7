"""What the compiled kernels of both estimators have in common: one launch pools, with RoPE or without, one attends.

Owns attend's calling convention and its counters, and the room for lists of blocks. Never synchronises. Must not know
what a pooling kernel writes, nor how blocks are chosen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor

from prism_gen.errors import UnsupportedError
from prism_gen.runtime.backend import BeforeRope, Pooled
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.pooled_keys import PooledKeys
from prism_gen.runtime.rules import SelectRules
from prism_gen.runtime.selection import Selection

Outputs = TypeVar("Outputs", bound="tuple[object, ...]")  # a pooling kernel's arguments behind its inputs


class TileCounters:
    """What attend's CTAs count tiles with: an int32 for each stream, zero, and left zero by every launch.

    Stream order makes sharing safe. All of a device's are made when a model is connected, because a call may come where
    nothing may be allocated and kept: in the warm-up of torch.compile's CUDA graphs memory comes from the graph's own
    pool. While a graph is being captured nothing is shared: a graph replays on any stream and beside eager launches, so
    it owns its counters, and their zero-filling is part of it.
    """

    def __init__(self) -> None:
        self._free: dict[int | None, Iterator[Tensor]] = {}
        self._used: dict[tuple[int | None, int], Tensor] = {}

    def reserve(self, device: torch.device) -> None:
        """Makes a device's counters, once, and waits for them: any stream may use them afterwards."""
        if device.index not in self._free:
            made = torch.zeros(NUM_COUNTERS, COUNTER_STRIDE, dtype=torch.int32, device=device)
            int(made[0, 0])  # waits
            self._free[device.index] = iter(made[:, :1].unbind())

    def current(self, device: torch.device) -> Tensor:
        """int32 [1] for a launch on the current stream."""
        if torch.cuda.is_current_stream_capturing():
            return torch.zeros(1, dtype=torch.int32, device=device)
        key = (device.index, torch.cuda.current_stream(device).cuda_stream)
        kept = self._used.get(key)
        if kept is None:
            free = next(self._free[device.index], None)
            if free is None:  # streams came and went: each call zeroes its own
                return torch.zeros(1, dtype=torch.int32, device=device)
            kept = self._used.setdefault(key, free)
        return kept


NUM_COUNTERS = 1024  # streams of a device: torch itself makes at most 3 times 32
COUNTER_STRIDE = 32  # int32: a cache line of 128 bytes each, as streams run side by side
TILE_COUNTERS = TileCounters()  # for the process: the layers of a model run in stream order and need one


class CudaStages(ABC, Generic[Outputs]):
    """pool, rotate_and_pool and attend of a Backend, by exported functions; a subclass says what pooling writes."""

    name = "cuda"

    def __init__(
        self,
        *,
        pool: Callable[..., None],
        rotate: Callable[..., None] | None,
        attend: Callable[..., None],
        rules: SelectRules,
    ) -> None:
        """rotate: None where the model does not ask for it."""
        self._pool = pool
        self._rotate = rotate
        self._attend = attend
        self._rules = rules

    @abstractmethod
    def _outputs(self, q: Tensor, k: Tensor, grid: BlockGrid, cache: PooledKeys | None) -> Outputs:
        """Room for what pooling writes. k: all keys, where no cache holds room for theirs."""

    @abstractmethod
    def _pooled(self, outputs: Outputs, grid: BlockGrid, cache: PooledKeys | None) -> Pooled:
        """What select is given, after the launch."""

    def pool(self, q: Tensor, k: Tensor, grid: BlockGrid, cache: PooledKeys | None = None) -> Pooled:
        """See Backend.pool. One launch."""
        outputs = self._outputs(q, k, grid, cache)
        self._pool(q, k if cache is None else k[:, cache.num_tokens :], *outputs)
        return self._pooled(outputs, grid, cache)

    def rotate_and_pool(
        self, x: BeforeRope, k_out: Tensor, grid: BlockGrid, cache: PooledKeys | None = None
    ) -> tuple[Tensor, Pooled]:
        """See Backend.rotate_and_pool. One launch. q comes back contiguous whatever its strides were."""
        if self._rotate is None:
            raise UnsupportedError(
                "this model's kernels were resolved without rotate",
                exists="pooling of q and k that were rotated before",
                fix='set "fused_rope": true in the prism object of its config.json, and build again',
            )
        q = torch.empty(x.q.shape, dtype=x.q.dtype, device=x.q.device)
        outputs = self._outputs(x.q, x.k, grid, cache)
        self._rotate(*x, q, k_out, *outputs)
        return q, self._pooled(outputs, grid, cache)

    def _empty_selection(self, pooled: Pooled, *, num_probs: int) -> Selection:
        """A Selection for a kernel to fill; wanted_counts is None where no list can overflow.

        num_probs: distributions of a row; 0: probs are not asked for.
        """
        q_mean, k_mean, grid = pooled.q_mean, pooled.k_mean, pooled.grid
        lists = (q_mean.shape[0], self._rules.num_lists(q_mean.shape[1], k_mean.shape[1]))
        num_q, num_k, most = grid.num_q_blocks, grid.num_k_blocks, self._rules.max_blocks
        capacity = num_k if most is None else min(most, num_k)

        def empty(*shape: int) -> Tensor:
            return torch.empty(*lists, *shape, dtype=torch.int32, device=q_mean.device)

        return Selection(
            block_indices=empty(num_q, capacity),
            block_counts=empty(num_q),
            grid=grid,
            probs=empty(num_probs, num_q, num_k) if num_probs else None,
            wanted_counts=empty(num_q) if capacity < num_k else None,
        )

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, selection: Selection, *, softmax_scale: float, return_lse: bool
    ) -> tuple[Tensor, Tensor | None]:
        """See Backend.attend. out is contiguous whatever the strides of q."""
        batch, seqlen_q, num_heads, _ = q.shape
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        lse = torch.empty(batch, num_heads, seqlen_q, dtype=torch.float32, device=q.device) if return_lse else None
        lists = (selection.block_indices, selection.block_counts)
        self._attend(q, k, v, out, lse, *lists, softmax_scale, TILE_COUNTERS.current(q.device))
        return out, lse
