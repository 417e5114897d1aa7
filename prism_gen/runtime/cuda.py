"""The compiled kernels as a Backend: allocates outputs and scratch, keeps counters, launches on the current stream.

Owns the calling convention of templates/README.md. Never synchronises. Must not check user input (checks.py) or choose
kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prism_gen.errors import UnsupportedError
from prism_gen.runtime.backend import OWN_FORMAT, BeforeRope, Pooled
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.pooled_keys import PooledKeys
from prism_gen.runtime.rules import PAPER_RULES, SelectRules
from prism_gen.runtime.selection import Selection


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


class CudaBackend:
    """Launches the kernels that resolve.py chose."""

    name = "cuda"
    means = OWN_FORMAT

    def __init__(
        self, *, pool: Any, select: Any, attend: Any, rotate: Any | None = None, rules: SelectRules = PAPER_RULES
    ) -> None:
        """Binds the exported functions of the modules once. rotate: None where the model does not ask for it."""
        self._pool = pool.get_function("pool")
        self._rotate_and_pool = None if rotate is None else rotate.get_function("rotate")
        self._select = select.get_function("select")
        self._scratch_floats = select.get_function("scratch_floats")
        self._attend = attend.get_function("attend")
        self._rules = rules

    def pool(self, q: Tensor, k: Tensor, grid: BlockGrid, cache: PooledKeys | None = None) -> Pooled:
        """See Backend.pool. One launch."""
        outputs = _pool_outputs(q, k, grid, cache)
        self._pool(q, k if cache is None else k[:, cache.num_tokens :], *outputs)
        return _pooled(outputs, grid, cache)

    def rotate_and_pool(
        self, x: BeforeRope, k_out: Tensor, grid: BlockGrid, cache: PooledKeys | None = None
    ) -> tuple[Tensor, Pooled]:
        """See Backend.rotate_and_pool. One launch. q comes back contiguous whatever its strides were."""
        if self._rotate_and_pool is None:
            raise UnsupportedError(
                "this model's kernels were resolved without rotate",
                exists="pool, select, attend",
                fix='set "fused_rope": true in the prism object of its config.json, and build again',
            )
        q = torch.empty(x.q.shape, dtype=x.q.dtype, device=x.q.device)
        outputs = _pool_outputs(x.q, x.k, grid, cache)
        self._rotate_and_pool(*x, q, k_out, *outputs)
        return q, _pooled(outputs, grid, cache)

    def select(self, pooled: Pooled, thresholds: Tensor, *, softmax_scale: float, with_probs: bool) -> Selection:
        """See Backend.select; these kernels score by bands and need no softmax_scale.

        What follows a row's block_counts in block_indices is not written.
        """
        q_mean, k_mean, q_energy, k_energy, grid = pooled
        rules, device = self._rules, q_mean.device
        batch, num_q_blocks, num_k_blocks = q_mean.shape[0], q_mean.shape[2], k_mean.shape[2]
        num_lists = rules.num_lists(q_mean.shape[1], k_mean.shape[1])
        shape = (batch, num_lists, num_q_blocks)
        indices, counts, wanted = empty_lists(shape, num_k_blocks, rules.max_blocks, device)
        probs = None
        if with_probs:
            probs = torch.empty(batch, num_lists, 2, num_q_blocks, num_k_blocks, dtype=torch.int32, device=device)
        heads = (q_mean.shape[1], k_mean.shape[1], int(rules.share == "group"))
        num_floats = self._scratch_floats(batch, *heads, num_q_blocks, num_k_blocks)
        scratch = torch.empty(num_floats, dtype=torch.float32, device=device) if num_floats else None
        self._select(
            q_mean,
            k_mean,
            q_energy,
            k_energy,
            thresholds,
            *_sizes(grid),
            *rules.kernel_arguments(),
            indices,
            counts,
            wanted,
            probs,
            scratch,
        )
        return Selection(indices, counts, grid, probs, wanted)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, selection: Selection, *, softmax_scale: float, return_lse: bool
    ) -> tuple[Tensor, Tensor | None]:
        """See Backend.attend."""
        return launch_attend(self._attend, q, k, v, selection, softmax_scale=softmax_scale, return_lse=return_lse)


class Lists(NamedTuple):
    """Where a kernel writes its lists of blocks. wanted: None where they cannot overflow."""

    indices: Tensor
    counts: Tensor
    wanted: Tensor | None


def empty_lists(shape: tuple[int, int, int], num_k_blocks: int, max_blocks: int | None, device: torch.device) -> Lists:
    """Room for lists of shape (batch, num_lists, num_q_blocks), of at most max_blocks (None: all key blocks)."""
    capacity = num_k_blocks if max_blocks is None else min(max_blocks, num_k_blocks)
    indices = torch.empty(*shape, capacity, dtype=torch.int32, device=device)
    counts = torch.empty(shape, dtype=torch.int32, device=device)
    return Lists(indices, counts, torch.empty_like(counts) if capacity < num_k_blocks else None)


def launch_attend(
    attend: Callable[..., None],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    selection: Selection,
    *,
    softmax_scale: float,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Backend.attend by an attend kernel's exported function. out is contiguous whatever the strides of q."""
    batch, seqlen_q, num_heads, _ = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(batch, num_heads, seqlen_q, dtype=torch.float32, device=q.device) if return_lse else None
    lists = (selection.block_indices, selection.block_counts)
    attend(q, k, v, out, lse, *lists, softmax_scale, TILE_COUNTERS.current(q.device))
    return out, lse


class _PoolOutputs(NamedTuple):
    """The arguments of pool and rotate_and_pool behind their inputs, in their order."""

    q_mean: Tensor
    q_energy: Tensor
    k_mean: Tensor
    k_energy: Tensor
    block_size_q: int
    block_size_k: int
    k_start: int
    tail_in: Tensor | None
    tail_out: Tensor | None


def _pool_outputs(q: Tensor, k: Tensor, grid: BlockGrid, cache: PooledKeys | None) -> _PoolOutputs:
    q_outputs, sizes = _empty_pooled(q, grid.num_q_blocks), (grid.block_size_q, grid.block_size_k)
    if cache is None:
        return _PoolOutputs(*q_outputs, *_empty_pooled(k, grid.num_k_blocks), *sizes, 0, None, None)
    return _PoolOutputs(*q_outputs, cache.mean, cache.energy, *sizes, cache.num_tokens, cache.tail, cache.next_tail)


def _pooled(outputs: _PoolOutputs, grid: BlockGrid, cache: PooledKeys | None) -> Pooled:
    """What select is given, after the launch."""
    k_mean, k_energy = outputs.k_mean, outputs.k_energy
    if cache is not None:
        cache.advance(grid.seqlen_k)
        k_mean, k_energy = cache.pooled()
    return Pooled(outputs.q_mean, k_mean, outputs.q_energy, k_energy, grid)


def _empty_pooled(x: Tensor, num_blocks: int) -> tuple[Tensor, Tensor]:
    """Room for the means and energies of x [batch, seqlen, num_heads, head_dim]."""
    rows = (x.shape[0], x.shape[2], num_blocks)
    mean = torch.empty(*rows, x.shape[3], dtype=torch.float32, device=x.device)
    return mean, torch.empty(*rows, 3, dtype=torch.float32, device=x.device)


def _sizes(grid: BlockGrid) -> tuple[int, int, int, int]:
    return grid.block_size_q, grid.block_size_k, grid.seqlen_q, grid.seqlen_k
