"""One layer measured: what is selected, how much of dense attention that holds, the error of the output, the time.

Owns the measures of the run command. Must not print or draw.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from prism_gen.runtime.attention import PrismAttention
from prism_gen.runtime.results import Stats, mass_kept, relative_error
from prism_gen.runtime.selection import Selection

CUDA_WARM_UPS = 3  # the first launches load code and fill caches
CUDA_REPEATS = 7  # the median of 7 shrugs off a slow launch or two
_T = TypeVar("_T")


@dataclass(frozen=True)
class LayerReport:
    """Per head, [num_q_heads] on the CPU: density, mean and least mass kept of a row, relative error against dense.

    stage_ms: name -> milliseconds, pool, select, attend, and dense for comparison. repeats: runs behind each median.
    """

    stats: Stats
    selection: Selection
    density: Tensor
    mean_mass: Tensor
    least_mass: Tensor
    error: Tensor
    dense_lse: Tensor
    stage_ms: dict[str, float]
    repeats: int


def measure(attention: PrismAttention, q: Tensor, k: Tensor, v: Tensor) -> LayerReport:
    """Runs each stage, and dense attention through the same attend with every visible block selected.

    Raises: as PrismAttention's stages do.
    """
    is_cuda = q.device.type == "cuda"
    stage_ms: dict[str, float] = {}

    def timed(stage: str, run: Callable[[], _T]) -> _T:
        stage_ms[stage], result = _median_ms(run, is_cuda=is_cuda)
        return result

    pooled = timed("pool", lambda: attention.pool(q, k))
    timed("select", lambda: attention.select(pooled))
    selection = attention.select(pooled, with_probs=True)
    out, lse = timed("attend", lambda: attention.attend(q, k, v, selection, return_lse=True))
    heads_per_list = attention.model.heads_per_list
    everything = Selection.all_visible(selection.grid, q.shape[0], q.shape[2] // heads_per_list, q.device)
    dense, dense_lse = timed("dense", lambda: attention.attend(q, k, v, everything, return_lse=True))
    assert lse is not None  # both were asked for
    assert dense_lse is not None
    mass = mass_kept(lse, dense_lse).cpu()
    stats = Stats.of(selection)
    return LayerReport(
        stats=stats,
        selection=selection,
        density=stats.density.mean(0).repeat_interleave(heads_per_list).cpu(),
        mean_mass=mass.mean((0, 2)),
        least_mass=mass.amin((0, 2)),
        error=relative_error(out, dense).cpu(),
        dense_lse=dense_lse,
        stage_ms=stage_ms,
        repeats=CUDA_REPEATS if is_cuda else 1,
    )


def _median_ms(run: Callable[[], _T], *, is_cuda: bool) -> tuple[float, _T]:
    """Milliseconds and result: CUDA events and a median after warm-up, or one run on the host's clock."""
    if not is_cuda:
        start = time.perf_counter()
        result = run()
        return (time.perf_counter() - start) * 1e3, result
    for _ in range(CUDA_WARM_UPS):
        result = run()
    spans = []
    for _ in range(CUDA_REPEATS):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        before.record()
        result = run()
        after.record()
        spans.append((before, after))
    torch.cuda.synchronize()
    return statistics.median(before.elapsed_time(after) for before, after in spans), result
