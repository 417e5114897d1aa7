"""Speed of pool and select, stage by stage, as one CUDA graph and back to back: the section `select_speed`.

Owns which figures are taken. Must not own timing or peers (prism_gen/bench/ does).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from prism_gen.bench.directions import sharpen
from prism_gen.bench.peers import prism_estimate, prism_unavailable
from prism_gen.bench.timing import Timing, captured, measure
from prism_gen.runtime import reference
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.selection import Selection
from prism_gen.verify.kernels import Kernel, of_family
from prism_gen.verify.report import Findings, Report
from tools.check.ceilings import report_ceilings
from tools.check.graph import Pipeline, make_pipeline
from tools.check.options import Options
from tools.check.pool_speed import time_repeated

MAX_SORTED = 1 << 27  # probabilities that the reference sorts at once: 1 GB of int64 places
THRESHOLD = 0.95  # the paper's for Llama, as the peers' figures were taken


def time_selection(pipeline: Pipeline, device: torch.device, tbps: float) -> Findings:
    """pool, select, both, both replayed as a graph, and among others in a graph; the floor is q and k read once."""
    found = Findings()
    pipeline.buffers["thresholds"].fill_(THRESHOLD)
    stages: dict[str, Callable[[], object]] = {
        "pool": pipeline.run_pool,
        "select": pipeline.run_select,
        "total": pipeline.selection,
    }
    if device.type == "cuda":
        stages["graph"] = captured(pipeline.selection)
    times: dict[str, Timing] = {name: measure(stage, device) for name, stage in stages.items()}
    for name, timing in times.items():
        found.figures[f"{name}_ms"] = round(timing.median_ms, 5)
        found.figures[f"{name}_spread"] = timing.record()["spread"]
    found.figures["repeated_ms"] = round(time_repeated(pipeline.selection, device), 5)
    counts = pipeline.buffers["block_counts"]
    q_bytes, k_bytes = (x.numel() * x.element_size() for x in (pipeline.q, pipeline.k))
    floor_ms = (q_bytes + k_bytes) / tbps / 1e9
    found.figures.update(
        floor_ms=round(floor_ms, 5),
        times_floor=round(times["total"].median_ms / floor_ms, 2),
        pool_tbps=round((q_bytes + k_bytes) / times["pool"].median_ms / 1e9, 3),
        density=float(counts.sum()) / (counts.shape[1] * pipeline.grid.total_visible),
    )
    check_lists(found, pipeline)
    return found


def check_lists(found: Findings, pipeline: Pipeline) -> None:
    """The lists at full size against the reference on the kernel's own scores, for as many as sort quickly."""
    grid, b = pipeline.grid, pipeline.buffers
    shape = (1, b["block_counts"].shape[1], 2, grid.num_q_blocks, grid.num_k_blocks)
    probs = torch.zeros(shape, dtype=torch.int32, device=pipeline.q.device)
    pipeline.run_select(probs)
    lists = min(shape[1], max(1, MAX_SORTED // (2 * grid.num_q_blocks * grid.num_k_blocks)))
    wanted = reference.select_from_fixed(probs[:, :lists], b["thresholds"][:lists], grid).block_mask()
    mask = Selection(b["block_indices"][:, :lists], b["block_counts"][:, :lists], grid).block_mask()
    differing = int((wanted != mask).any(-1).sum())
    found.figures.update(compared_lists=lists, identical_scores_differing_rows=differing)
    found.require(differing == 0, f"{differing} rows differ from the reference on identical scores")


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
            if seqlen == max(options.lengths):
                sharpen(pipeline.q, pipeline.k, (grid.block_size_q, grid.block_size_k))
                report.case(what, f"{case}-peaked", partial(time_selection, pipeline, report.device, tbps), show=True)
            if "prism-estimate" in options.peers:
                sizes = (grid.block_size_q, grid.block_size_k)
                if reason := prism_unavailable(options.prism_src, sizes):
                    report.add("peer-prism-estimate", f"{what}-{case}", show=True, skipped=reason)
                else:
                    check = partial(time_prism, pipeline, report.device, options.prism_src)
                    report.case("peer-prism-estimate", f"{what}-{case}", check, show=True)
            del pipeline
