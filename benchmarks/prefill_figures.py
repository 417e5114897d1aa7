"""What is measured of one model at one length: passes, stages, the dense kernels, and the density that is set.

Owns how each figure is taken. Must not choose lengths or report.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.prefill_model import QKV, Clock, dense_kernels, first_token, heads_second
from prism_gen.bench.timing import MIN_RUNS, measure
from prism_gen.runtime import PrismAttention
from prism_gen.runtime.results import Stats
from prism_gen.runtime.thresholds import Thresholds
from prism_gen.sub_blocks import SubBlocks

LEAST = 1e-9  # a share so small that the band of low frequencies adds one block a row
SEARCH_STEPS = 14  # halvings of [0, 1]: finer than one block in 1024
STAGE_CALLS = 4  # back to back, so that no launch gap is in a stage's time
MAX_ERROR = 0.05  # relative, of one attention output: bf16 noise of two kernels


class Figure(NamedTuple):
    """One variant at one length: medians over passes, milliseconds; peak memory in GiB."""

    ttft_ms: float
    attention_ms: float
    layer_ms: float
    passes: int
    peak_gib: float


def timed_passes(model: Any, ids: Tensor, clock: Clock, seconds: float) -> Figure:
    """Time to first token and its attention part: passes until `seconds` are spent, at most MIN_RUNS.

    The caller has run a pass of this length, so memory is at hand.
    """
    device = ids.device
    torch.cuda.reset_peak_memory_stats(device)
    walls: list[float] = []
    layers: list[list[float]] = []
    while len(walls) < MIN_RUNS and sum(walls) < seconds * 1e3:
        start = time.perf_counter()
        first_token(model, ids)
        layers.append(clock.take_ms())
        walls.append((time.perf_counter() - start) * 1e3)
    return Figure(
        statistics.median(walls),
        statistics.median(map(sum, layers)),
        statistics.median(ms for passes in layers for ms in passes),
        len(walls),
        torch.cuda.max_memory_allocated(device) / 2**30,
    )


def capture_layer(model: Any, ids: Tensor, clock: Clock, layer: int) -> QKV:
    """q, k, v of one layer, [batch, tokens, heads, head_dim], from a pass that also warms the length up."""
    kept: list[QKV] = []

    def keep(module: Any, qkv: QKV) -> None:
        if module.layer_idx == layer:
            kept.append(heads_second(qkv))

    clock.seen = keep
    first_token(model, ids)
    clock.seen = None
    clock.take_ms()
    return kept[0]


def shares(attention: PrismAttention, share: float) -> Thresholds:
    """Of the visible blocks, the share that one distribution keeps; the paper's second adds as little as it can."""
    if isinstance(attention.scoring, SubBlocks):
        return attention.make_thresholds(threshold=share)
    return attention.make_thresholds(share, LEAST)


def share_for(attention: PrismAttention, qkv: QKV, density: float) -> tuple[Thresholds, float]:
    """Thresholds with which a layer selects `density` of the visible blocks, forced ones included, and what it does."""
    pooled = attention.pool(*qkv[:2])
    low, high = LEAST, 1.0
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        thresholds = shares(attention, middle)
        found = float(Stats.of(attention.select(pooled, thresholds=thresholds)).density.mean())
        low, high = (middle, high) if found < density else (low, middle)
    return thresholds, found


def stage_ms(attention: PrismAttention, qkv: QKV) -> dict[str, float]:
    """Each stage alone on the tensors of one layer, milliseconds."""
    q, k, v = qkv
    pooled = attention.pool(q, k)
    selection = attention.select(pooled)
    stages: dict[str, Callable[[], object]] = {
        "pool": lambda: attention.pool(q, k),
        "select": lambda: attention.select(pooled),
        "attend": lambda: attention.attend(q, k, v, selection),
    }
    return {name: round(measure(run, q.device, warm=1, calls=STAGE_CALLS).median_ms, 4) for name, run in stages.items()}


def choose_dense(qkv: QKV) -> tuple[str, dict[str, float]]:
    """The fastest dense kernel on these tensors, and milliseconds of each; all must agree with the first."""
    heads_first = heads_second(qkv)
    times: dict[str, float] = {}
    exact: Tensor | None = None
    for name, kernel in dense_kernels().items():
        out = kernel(heads_first, None).float()
        exact = out if exact is None else exact
        error = float((out - exact).norm() / exact.norm())
        if error > MAX_ERROR:
            raise SystemExit(f"{name} differs from the first dense kernel by {error:.3f}")
        times[name] = round(measure(lambda run=kernel: run(heads_first, None), out.device).median_ms, 3)  # type: ignore[misc]
    return min(times, key=times.__getitem__), times
