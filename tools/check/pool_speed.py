"""Speed of pool, and of rotate beside the rotation alone: the section `pool_speed`.

Owns which figures are taken. Must not own timing (prism_gen/bench/timing.py does).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from prism_gen.bench.timing import captured, measure
from prism_gen.verify.kernels import Kernel, of_family
from prism_gen.verify.pooling import Pooled
from prism_gen.verify.report import Findings, Report
from prism_gen.verify.rotation import rope_tables
from tools.check.ceilings import report_ceilings
from tools.check.options import Options

BLOCK_SIZES = ((128, 128), (128, 64), (64, 64))
REPEATS = 4  # launches in one graph: their mean holds one launch gap, and not the graph's own start
MAX_TIMES_ROTATION = 1.05  # what issue 4 allows the pooled rotation to cost
ROUNDS = 3  # of both rotations, in turn: a chip that warms up then slows both


def random_qk(kernel: Kernel, seqlen: int, heads: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Seeded normal q and k, batch 1."""
    draw = torch.Generator(device=device).manual_seed(seqlen)
    q, k = (
        torch.randn(1, seqlen, count, kernel.problem.head_dim, generator=draw, device=device).to(kernel.dtype)
        for count in heads
    )
    return q, k


def time_repeated(launch: Callable[[], object], device: torch.device) -> float:
    """Median milliseconds of a launch among REPEATS in a CUDA graph; on a CPU of a call."""

    def several() -> None:
        for _ in range(REPEATS):
            launch()

    if device.type != "cuda":
        return measure(launch, device).median_ms
    return measure(captured(several), device).median_ms / REPEATS


def time_pool(
    kernel: Kernel, seqlen: int, heads: tuple[int, int], block_sizes: tuple[int, int], device: torch.device, tbps: float
) -> Findings:
    """One launch over q and k, alone in the stream and back to back; the copy rate is read + write."""
    found = Findings()
    q, k = random_qk(kernel, seqlen, heads, device)
    outputs = Pooled.of(q, k, block_sizes).views
    launch = partial(kernel.launch, q, k, *outputs, *block_sizes, 0, None, None)
    timing = measure(launch, device, runs=15)
    repeated_ms = time_repeated(launch, device)
    read_bytes = sum(x.numel() * x.element_size() for x in (q, k))
    found.figures.update(timing.record())
    found.figures.update(graph_ms=round(repeated_ms, 5), floor_ms=round(read_bytes / tbps / 1e9, 5))
    found.figures["tbps"] = round(read_bytes / repeated_ms / 1e9, 3)
    found.figures["of_copy"] = round(read_bytes / repeated_ms / 1e9 / tbps, 3)
    return found


def time_rotate(
    kernel: Kernel, seqlen: int, heads: tuple[int, int], device: torch.device, tbps: float, *, judged: bool
) -> Findings:
    """The rotation with means and energies of 128x128 blocks beside the rotation alone, in turn; judged: the limit."""
    found = Findings()
    q, k = random_qk(kernel, seqlen, heads, device)
    cos, sin = rope_tables(kernel, seqlen, 0, device)
    inputs = (q, k, cos, sin, torch.empty_like(q), torch.empty_like(k))
    pooled = Pooled.of(q, k, (128, 128)).views
    launches: dict[str, Callable[[], object]] = {
        "rotate": partial(kernel.launch, *inputs, *pooled, 128, 128, 0, None, None)
    }
    if kernel.alone is not None:
        launches["rotate_only"] = partial(kernel.alone, *inputs)
    times: dict[str, list[float]] = {name: [] for name in launches}
    for _ in range(ROUNDS):
        for name, launch in launches.items():
            times[name].append(time_repeated(launch, device))
    medians = {name: sorted(values)[ROUNDS // 2] for name, values in times.items()}
    moved_bytes = 2 * sum(x.numel() * x.element_size() for x in (q, k))
    found.figures["total_ms"] = round(medians["rotate"], 5)
    found.figures["of_copy"] = round(moved_bytes / medians["rotate"] / 1e9 / tbps, 3)
    if "rotate_only" in medians:
        ratio = medians["rotate"] / medians["rotate_only"]
        found.figures.update(rotate_only_ms=round(medians["rotate_only"], 5), times_rotation=round(ratio, 4))
        found.require(not judged or ratio <= MAX_TIMES_ROTATION, f"pooling costs {ratio:.3f} times the rotation")
    return found


def run(kernels: list[Kernel], report: Report, options: Options) -> None:
    """Every pool and rotate kernel of the asked dtypes, at every length."""
    tbps = report_ceilings(report)["tbps"]
    heads, device = (options.num_q_heads, options.num_kv_heads), report.device
    for kernel in of_family(kernels, "pool") + of_family(kernels, "rotate"):
        if kernel.problem.dtype not in options.speed_dtypes:
            continue
        for seqlen in options.lengths:
            if kernel.spec.family == "rotate":
                judged = device.type == "cuda" and seqlen == max(options.lengths)
                check = partial(time_rotate, kernel, seqlen, heads, device, tbps, judged=judged)
                report.case(kernel.name, f"n{seqlen}", check, show=True)
                continue
            for sizes in BLOCK_SIZES:
                check = partial(time_pool, kernel, seqlen, heads, sizes, device, tbps)
                report.case(kernel.name, f"n{seqlen}-{sizes[0]}x{sizes[1]}", check, show=True)
