"""Speed of the subblock estimator's selection, subpool and score: the section `score_speed`.

Owns which figures are taken. Must not own timing (prism_gen/bench does).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from prism_gen.bench.fine_workload import FineProblem, make_fine_problem
from prism_gen.bench.timing import captured, measure
from prism_gen.runtime.grid import BlockGrid
from prism_gen.verify.kernels import Kernel, of_family
from prism_gen.verify.report import Findings, Report
from tools.check.ceilings import report_ceilings
from tools.check.options import Options

# Sub-blocks (q, k) and blocks (q, k) that are timed where the kernel has such multiples.
SUB_BLOCKS = ((8, 8), (4, 16), (4, 8))
BLOCKS = ((128, 128), (128, 64), (64, 64))


def time_fine(problem: FineProblem, device: torch.device, ceilings: dict[str, float]) -> Findings:
    """subpool, score, both, and both replayed as a graph; the floor is q and k read once and the products once."""
    found = Findings()
    stages: dict[str, Callable[[], object]] = {
        "subpool": problem.run_subpool,
        "score": problem.run_score,
        "total": problem.run,
    }
    if device.type == "cuda":
        stages["graph"] = captured(problem.run)
    for name, stage in stages.items():
        timing = measure(stage, device)
        found.figures[f"{name}_ms"] = round(timing.median_ms, 5)
        found.figures[f"{name}_spread"] = timing.record()["spread"]
    grid, heads = BlockGrid(problem.grid.seqlen_q, problem.grid.seqlen_k, *problem.fine), problem.q.shape[2]
    flops = 2.0 * problem.q.shape[3] * heads * grid.total_visible
    q_bytes, k_bytes = (x.numel() * x.element_size() for x in (problem.q, problem.k))
    floor_ms = (q_bytes + k_bytes) / ceilings["tbps"] / 1e9 + flops / ceilings["tflops"] / 1e9
    counts = problem.buffers["block_counts"]
    found.figures.update(
        floor_ms=round(floor_ms, 5),
        times_floor=round(found.figures["total_ms"] / floor_ms, 2),
        score_tflops=round(flops / found.figures["score_ms"] / 1e9, 1),
        scratch_mib=problem.buffers["scratch"].numel() * 4 >> 20,
        density=float(counts.sum()) / (counts.shape[1] * problem.grid.total_visible),
    )
    return found


def find_subpool(kernels: list[Kernel], score: Kernel, dtype: str) -> Kernel | None:
    """The subpool of score's head dim for q and k of that dtype."""
    wanted = (score.problem.head_dim, dtype)
    found = [k for k in of_family(kernels, "subpool") if (k.problem.head_dim, k.problem.dtype) == wanted]
    return found[0] if found else None


def run(kernels: list[Kernel], report: Report, options: Options) -> None:
    """Every score kernel at the sub-blocks that make usual blocks of it, for the asked dtypes, at every length."""
    ceilings = report_ceilings(report)
    for score in of_family(kernels, "score"):
        problem = score.problem
        for fine in SUB_BLOCKS:
            blocks = (problem.rows_per_block * fine[0], problem.columns_per_block * fine[1])
            if blocks not in BLOCKS:
                continue
            for dtype in options.speed_dtypes:
                subpool = find_subpool(kernels, score, dtype)
                what = f"fine-{dtype}-d{problem.head_dim}-b{blocks[0]}x{blocks[1]}-s{fine[0]}x{fine[1]}"
                for seqlen in options.lengths:
                    if subpool is None:
                        report.add(what, f"n{seqlen}", show=True, skipped="the bundle lacks its subpool")
                        continue
                    inputs = make_fine_problem((subpool, score), fine, seqlen, options.heads, report.device)
                    check = partial(time_fine, inputs, report.device, ceilings)
                    report.case(what, f"n{seqlen}", check, show=True)
                    del inputs, check
