"""Speed of attend over lengths, densities and blocks, with spot checks and peers: the section `attend_speed`.

Owns which figures are taken. Must not own timing, masks or peers (prism_gen/bench/ does).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from prism_gen.bench.peers import Peer, Problem, attend_peers
from prism_gen.bench.timing import REST_S, host_cost_us, measure
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.selection import visible_blocks
from prism_gen.verify import oracle
from prism_gen.verify.kernels import Kernel, of_family
from prism_gen.verify.masks import causal_block_mask, compact, density_of
from prism_gen.verify.report import Findings, Report
from tools.check.ceilings import report_ceilings
from tools.check.options import Options

NUM_SPOTS = 4  # (head, query block) pairs of a large problem that are compared with float64
PEER_TOLERANCE = 2e-2  # norm of the difference / norm: two bf16 roundings are below 5e-3
# Host cost does not depend on the length, so it is taken where draining the queue of HOST_CALLS launches is quick.
HOST_CALLS, HOST_MAX_TOKENS = 100, 8192
# From this length on a launch is long enough for the power limit to slow the chip down, so it is timed rested as well.
RESTED_MIN_TOKENS = 65536
UNEVEN_TOKENS = 32768  # the length at which one dense head is put beside sparse ones


def spot_check(found: Findings, problem: Problem, out: Tensor) -> None:
    """Compares NUM_SPOTS (head, query block) pairs of a large output with float64, among them the very last."""
    grid, heads = problem.grid, problem.q.shape[2]
    worst = 0.0
    for spot in range(NUM_SPOTS):
        head = spot * (heads - 1) // (NUM_SPOTS - 1)
        block = (grid.num_q_blocks - 1) * (spot + 1) // NUM_SPOTS
        worst = max(worst, _share_of_limit(problem, out, head, block))
    found.figures["spot_share_of_limit"] = round(worst, 3)
    found.require(worst <= 1.0, f"a spot of the output is off by {worst:.3g} times the limit")


def _share_of_limit(problem: Problem, out: Tensor, head: int, block: int) -> float:
    """Largest error of one query block of one head / what is allowed."""
    grid = problem.grid
    start, stop = block * grid.block_size_q, min((block + 1) * grid.block_size_q, grid.seqlen_q)
    window = BlockGrid(stop - start, stop + grid.prefix, grid.block_size_q, grid.block_size_k)
    row = problem.block_mask[head // problem.heads_per_list, block, : window.num_k_blocks]
    tokens = oracle.token_mask(row[None, None, None], window)
    kv_head = head // (problem.q.shape[2] // problem.k.shape[2])
    chosen = tokens.any(-2).flatten()  # only keys that a query of the block sees, so that float64 stays small at 128K
    k, v = (x[:, : window.seqlen_k, kv_head : kv_head + 1][:, chosen] for x in (problem.k, problem.v))
    q, tokens = problem.q[:, start:stop, head : head + 1], tokens[..., chosen]
    exact, _ = oracle.attend(q, k, v, tokens, problem.softmax_scale)
    from_torch = oracle.torch_attend(q, k, v, tokens, problem.softmax_scale)
    limit = oracle.error_limit(oracle.max_abs(from_torch.double() - exact))
    return oracle.max_abs(out[:, start:stop, head : head + 1].double() - exact) / limit


def make_problem(
    kernel: Kernel, seqlen: int, density: float, options: Options, device: torch.device, *, first_dense: bool = False
) -> Problem:
    """Seeded normal inputs and a mask for one figure, batch 1. first_dense: the first list selects everything."""
    spec = kernel.problem
    draw = torch.Generator(device=device).manual_seed(0)
    q, k, v = (
        torch.randn(1, seqlen, heads, spec.head_dim, generator=draw, device=device, dtype=kernel.dtype)
        for heads in (options.num_q_heads, options.num_kv_heads, options.num_kv_heads)
    )
    grid = BlockGrid(seqlen, seqlen, spec.block_size_q, spec.block_size_k)
    mask = causal_block_mask(grid, options.num_q_heads // spec.heads_per_list, density, device=device)
    if first_dense:
        mask[0] = visible_blocks(grid, device)
    return Problem(q, k, v, mask, grid, spec.head_dim**-0.5)


def prepare_launch(kernel: Kernel, problem: Problem) -> tuple[Callable[[], object], Tensor]:
    """One attend launch as a call, and the output it writes."""
    indices, counts = compact(problem.block_mask[None])
    out = torch.full_like(problem.q, float("nan"))
    counter = torch.zeros(1, dtype=torch.int32, device=out.device)
    scale = problem.softmax_scale
    return partial(kernel.launch, problem.q, problem.k, problem.v, out, None, indices, counts, scale, counter), out


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
        distance = float((theirs.reshape(ours.shape).float() - ours.float()).norm() / ours.float().norm())
        found.figures["distance_to_ours"] = distance
        found.require(distance <= PEER_TOLERANCE, f"the output differs from ours by {distance:.3g} of its norm")
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
                problem = make_problem(kernel, seqlen, density, options, report.device)
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
    problem = make_problem(kernel, UNEVEN_TOKENS, min(options.densities), options, report.device, first_dense=True)
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
