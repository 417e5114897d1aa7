"""Energy per TFLOP of attend, beside a plain matrix product and the peers: the section `power`.

Owns which figures are taken. Must not own how power is read (prism_gen/bench/power.py does).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from prism_gen.bench.peers import Peer, attend_peers
from prism_gen.bench.power import power_meter, sustained
from prism_gen.bench.timing import CEILING_MATMUL
from prism_gen.runtime.nvml import NvmlDevice
from prism_gen.verify.kernels import Kernel, of_family
from prism_gen.verify.masks import density_of
from prism_gen.verify.problem import Problem, make_problem, prepare_launch
from prism_gen.verify.report import Findings, Report
from tools.check.options import Options


def _measure(call: Callable[[], object], flops: float, meter: NvmlDevice) -> Findings:
    found = Findings()
    found.figures.update(sustained(call, flops, meter))
    return found


def _measure_peer(peer: Peer, problem: Problem, flops: float, meter: NvmlDevice) -> Findings:
    return _measure(peer.prepare(problem), flops, meter)


def run(kernels: list[Kernel], report: Report, options: Options) -> None:
    """The product, then every attend kernel of the asked dtypes at the longest length: sparsest mask, and dense."""
    if report.device.type != "cuda":
        report.add("power", "any", show=True, skipped="needs a GPU")
        return
    meter = power_meter(report.device)
    size = CEILING_MATMUL
    a, b = (torch.randn(size, size, device=report.device, dtype=torch.bfloat16) for _ in range(2))
    product = partial(_measure, lambda: a @ b, 2.0 * size**3, meter)
    report.case(f"matmul{size}_bf16", "sustained", product, show=True)
    known = attend_peers(options.prism_src, options.flashprefill_lib)
    peers = {name: peer for name, peer in known.items() if name in options.peers}
    for kernel in of_family(kernels, "attend"):
        if kernel.problem.dtype not in options.speed_dtypes:
            continue
        for density in (min(options.densities), 1.0):
            problem = make_problem(kernel, max(options.lengths), density, options.heads, report.device)
            launch, _ = prepare_launch(kernel, problem)
            case = f"n{problem.grid.seqlen_q}-density{density_of(problem.block_mask, problem.grid):.4f}"
            measured = partial(_measure, launch, problem.selected_flops, meter)
            report.case(kernel.name, case, measured, show=True)
            for name, peer in peers.items():
                if peer.sparse != (density < 1.0) or peer.unavailable(problem):
                    continue
                work = problem.selected_flops if peer.sparse else problem.dense_flops
                call = partial(_measure_peer, peer, problem, work, meter)
                report.case(f"peer-{name}", f"{kernel.name}-{case}", call, show=True)
            del problem, launch
