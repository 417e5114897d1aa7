"""Speed of attend over lengths, densities and blocks, with spot checks and peers: the section `attend_speed`.

Owns which figures are taken. Must not own timing, masks or peers (prism_gen/bench/ does).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from prism_gen.bench.peers import Peer, attend_peers, differs, distance
from prism_gen.bench.timing import REST_S, host_cost_us, measure
from prism_gen.verify.kernels import Kernel, of_family
from prism_gen.verify.masks import density_of
from prism_gen.verify.problem import Problem, make_problem, prepare_launch
from prism_gen.verify.report import Findings, Report
from prism_gen.verify.spots import spot_check
from tools.check.ceilings import report_ceilings
from tools.check.options import Options

# Host cost does not depend on the length, so it is taken where draining the queue of HOST_CALLS launches is quick.
HOST_CALLS, HOST_MAX_TOKENS = 100, 8192
# From this length on a launch is long enough for the power limit to slow the chip down, so it is timed rested as well.
RESTED_MIN_TOKENS = 65536
UNEVEN_TOKENS = 32768  # the length at which one dense head is put beside sparse ones


def add_timing(found: Findings, call: Callable[[], object], flops: float, problem: Problem) -> float:
    """Times a call back to back, and long ones also rested; returns the TFLOP/s back to back."""
    timing = measure(call, problem.q.device)
    tflops = flops / timing.median_ms / 1e9
    found.figures.update(timing.record(), tflops=round(tflops, 1))
    if problem.q.is_cuda and problem.grid.seqlen_q >= RESTED_MIN_TOKENS:
        rested = measure(call, problem.q.device, rest_s=REST_S)
        found.figures["rested_ms"] = round(rested.median_ms, 5)
        found.figures["rested_tflops"] = round(flops / rested.median_ms / 1e9, 1)
    return tflops


def time_kernel(problem: Problem, launch: Callable[[], object], out: Tensor, ceiling_tflops: float) -> Findings:
    """One figure of ours and its spot check."""
    found = Findings()
    tflops = add_timing(found, launch, problem.selected_flops, problem)
    found.figures["of_ceiling"] = round(tflops / ceiling_tflops, 3)
    if out.is_cuda and problem.grid.seqlen_q <= HOST_MAX_TOKENS:
        found.figures["host_us"] = round(host_cost_us(launch, out.device, calls=HOST_CALLS), 2)
    spot_check(found, problem, out)
    return found


def time_peer(problem: Problem, peer: Peer, ours: Tensor) -> Findings:
    """One figure of a peer; a sparse peer's output must equal ours."""
    found = Findings()
    call = peer.prepare(problem)
    theirs = call()
    add_timing(found, call, problem.selected_flops if peer.sparse else problem.dense_flops, problem)
    if peer.sparse:
        found.figures["distance_to_ours"] = away = distance(theirs, ours)
        found.require(not differs(away), differs(away))
    return found


def run(kernels: list[Kernel], report: Report, options: Options) -> None:
    """Every attend kernel of the asked dtypes on every length and density, each with its peers."""
    ceiling = report_ceilings(report)["tflops"]
    known = attend_peers(options.prism_src, options.flashprefill_lib)
    dense_timed: set[tuple[object, ...]] = set()
    for kernel in of_family(kernels, "attend"):
        if kernel.problem.dtype not in options.speed_dtypes:
            continue
        for seqlen in options.lengths:
            for density in options.densities:
                problem = make_problem(kernel, seqlen, density, options.heads, report.device)
                launch, out = prepare_launch(kernel, problem)
                case = f"n{seqlen}-density{density_of(problem.block_mask, problem.grid):.4f}"
                report.case(kernel.name, case, partial(time_kernel, problem, launch, out, ceiling), show=True)
                for name in filter(known.__contains__, options.peers):  # the others are peers of select
                    peer, once = known[name], (name, seqlen, kernel.problem.dtype, kernel.problem.head_dim)
                    if not peer.sparse and once in dense_timed:
                        continue
                    dense_timed.add(once)
                    _report_peer(report, peer, problem, out, f"{kernel.name}-{case}")
                del problem, launch, out
        if UNEVEN_TOKENS in options.lengths:
            _report_uneven(kernel, report, options, ceiling)


def _report_uneven(kernel: Kernel, report: Report, options: Options, ceiling: float) -> None:
    """One dense head beside sparse ones: whether the tiles still fill the chip to the end."""
    problem = make_problem(
        kernel, UNEVEN_TOKENS, min(options.densities), options.heads, report.device, first_dense=True
    )
    launch, out = prepare_launch(kernel, problem)
    case = f"n{UNEVEN_TOKENS}-one-list-dense"
    report.case(kernel.name, case, partial(time_kernel, problem, launch, out, ceiling), show=True)


def _report_peer(report: Report, peer: Peer, problem: Problem, out: Tensor, case: str) -> None:
    """A peer that cannot run here is a note, not a failure; a peer that runs and disagrees is one."""
    reason = peer.unavailable(problem)
    if reason:
        report.add(f"peer-{peer.name}", case, show=True, skipped=reason)
    else:
        report.case(f"peer-{peer.name}", case, partial(time_peer, problem, peer, out), show=True)
