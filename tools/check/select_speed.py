"""Speed of pool and select, stage by stage and as one CUDA graph: the section `select_speed`.

Owns which figures are taken. Must not own timing or peers (benchmarks/ does).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.peers import prism_estimate, prism_unavailable
from benchmarks.timing import Timing, captured, measure
from prism_gen.runtime.grid import BlockGrid
from tools.check.graph import Pipeline, make_pipeline
from tools.check.kernels import Kernel, of_family
from tools.check.options import Options
from tools.check.report import Findings, Report, report_ceilings

THRESHOLD = 0.95  # the paper's for Llama, as the peers' figures were taken


def time_selection(pipeline: Pipeline, device: torch.device, tbps: float) -> Findings:
    """pool of q, pool of k, select, all three, and all three replayed as a graph; the floor is q and k read once."""
    found = Findings()
    pipeline.buffers["thresholds"].fill_(THRESHOLD)
    stages: dict[str, Callable[[], object]] = {
        "pool_q": pipeline.pool_q,
        "pool_k": pipeline.pool_k,
        "select": pipeline.run_select,
        "total": pipeline.selection,
    }
    if device.type == "cuda":
        stages["graph"] = captured(pipeline.selection)
    times: dict[str, Timing] = {name: measure(stage, device) for name, stage in stages.items()}
    for name, timing in times.items():
        found.figures[f"{name}_ms"] = round(timing.median_ms, 5)
        found.figures[f"{name}_spread"] = timing.record()["spread"]
    q_bytes, k_bytes = (x.numel() * x.element_size() for x in (pipeline.q, pipeline.k))
    floor_ms = (q_bytes + k_bytes) / tbps / 1e9
    found.figures.update(
        floor_ms=round(floor_ms, 5),
        times_floor=round(times["total"].median_ms / floor_ms, 2),
        pool_q_tbps=round(q_bytes / times["pool_q"].median_ms / 1e9, 3),
        density=float(pipeline.buffers["block_counts"].sum()) / (pipeline.q.shape[2] * pipeline.grid.total_visible),
    )
    return found


def time_prism(pipeline: Pipeline, device: torch.device, prism_src: str | None) -> Findings:
    """The official selection, with and without its repeat of K."""
    found = Findings()
    published, plain = prism_estimate(prism_src, pipeline.q, pipeline.k, pipeline.grid.block_size_q)
    found.figures["total_ms"] = round(measure(published, device).median_ms, 5)
    found.figures["without_repeat_ms"] = round(measure(plain, device).median_ms, 5)
    return found


def run(kernels: list[Kernel], report: Report, options: Options) -> None:
    """pool + select for every block shape that an attend kernel of the asked dtypes has, at every length."""
    tbps = report_ceilings(report)["tbps"]
    heads = (options.num_q_heads, options.num_kv_heads)
    for attend in of_family(kernels, "attend"):
        problem = attend.problem
        if problem.dtype not in options.speed_dtypes:
            continue
        for seqlen in options.lengths:
            grid = BlockGrid(seqlen, seqlen, problem.block_size_q, problem.block_size_k)
            pipeline = make_pipeline(kernels, attend, grid, heads, report.device)
            what, case = f"selection-{problem.label()}", f"n{seqlen}"
            if pipeline is None:
                report.add(what, case, show=True, skipped="the bundle lacks its pool or select")
                continue
            report.case(what, case, partial(time_selection, pipeline, report.device, tbps), show=True)
            if "prism-estimate" in options.peers:
                sizes = (grid.block_size_q, grid.block_size_k)
                if reason := prism_unavailable(options.prism_src, sizes):
                    report.add("peer-prism-estimate", f"{what}-{case}", show=True, skipped=reason)
                else:
                    check = partial(time_prism, pipeline, report.device, options.prism_src)
                    report.case("peer-prism-estimate", f"{what}-{case}", check, show=True)
            del pipeline
