"""Numerics of pool and attend on small shapes against float64: the section `numerics`.

Owns what a right answer is for these two families. Must not know where kernels come from.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.masks import compact
from prism_gen.runtime import reference
from tools.check import oracle
from tools.check.buffers import Guarded, guarded, guarded_like
from tools.check.cases import ATTEND_CASES, QUICK_CASES, RAGGED, Case
from tools.check.kernels import Kernel, bands_of, of_family
from tools.check.report import Findings, Group, Report

# fp32 sums of up to 128 values, whatever their order: 128 * 2^-24 of the largest value at the very worst.
MEAN_TOLERANCE = 2e-6  # of the largest |x|
ENERGY_TOLERANCE = 2e-5  # relative: a sum of up to 256 squares
LSE_TOLERANCE = 1e-4  # absolute, plus the same share of |lse| / 10: fp32 scores, ex2.approx and lg2.approx
LAUNCHES = 2  # the second must give the same bits


def check_pool(kernel: Kernel, case: Case, device: torch.device) -> Findings:
    """pool of k in the case's layout against float64; guards, poison and repeatability."""
    found, problem = Findings(), kernel.problem
    x = case.qkv(problem.head_dim, kernel.dtype, device)[1]
    exact_mean, exact_energy = reference.pool(x.double(), problem.block_size, bands_of(problem))
    mean, energy = (guarded(t.shape, torch.float32, device) for t in (exact_mean, exact_energy))
    first: tuple[Tensor, Tensor] | None = None
    for _ in range(LAUNCHES):
        mean.poison()
        energy.poison()
        kernel.launch(x, mean.view, energy.view)
        if first is None:
            first = mean.view.clone(), energy.view.clone()
    found.require(first is not None and _same_bits(first, (mean.view, energy.view)), "two launches differ")
    found.require(mean.intact(), "wrote outside mean")
    found.require(energy.intact(), "wrote outside energy")
    scale = float(x.double().abs().max())
    found.figures["mean_error"] = oracle.max_abs(mean.view - exact_mean) / scale
    relative = (energy.view - exact_energy) / exact_energy.clamp_min(1e-30)
    found.figures["energy_error"] = oracle.max_abs(relative)
    found.require(found.figures["mean_error"] <= MEAN_TOLERANCE, f"mean is off by over {MEAN_TOLERANCE:g} of max|x|")
    found.require(found.figures["energy_error"] <= ENERGY_TOLERANCE, f"energy is off by over {ENERGY_TOLERANCE:g}")
    return found


def check_attend(kernel: Kernel, case: Case, device: torch.device) -> Findings:
    """attend against float64, with torch's own error on the same inputs as the measure."""
    found, problem = Findings(), kernel.problem
    grid = case.grid(problem.block_size_q, problem.block_size_k)
    q, k, v = case.qkv(problem.head_dim, kernel.dtype, device)
    block_mask = case.block_mask(grid, device)
    indices, counts = compact(block_mask)
    scale = problem.head_dim**-0.5
    out = guarded_like(q, case.layout)
    lse = guarded((case.batch, case.num_q_heads, case.seqlen_q), torch.float32, device) if case.lse else None
    counter = torch.zeros(1, dtype=torch.int32, device=device)
    results: list[list[Tensor]] = []
    for _ in range(LAUNCHES):
        for output in (out, lse):
            if output is not None:
                output.poison()
        lse_view = None if lse is None else lse.view
        kernel.launch(q, k, v, out.view, lse_view, indices, counts, scale, counter)
        found.require(int(counter) == 0, f"tile_counter was left at {int(counter)}")
        results.append([t.clone() for t in (out.view, lse_view) if t is not None])
    found.require(_same_bits(results[0], results[1]), "two launches differ")
    found.require(out.intact(), "wrote outside out")
    found.require(lse is None or lse.intact(), "wrote outside lse")
    mask = oracle.token_mask(block_mask, grid)
    exact, exact_lse = oracle.attend(q, k, v, mask, scale)
    _judge_out(found, out.view, exact, oracle.torch_attend(q, k, v, mask, scale))
    if lse is not None:
        _judge_lse(found, lse, exact_lse)
    return found


def _judge_out(found: Findings, out: Tensor, exact: Tensor, from_torch: Tensor) -> None:
    torch_error = oracle.max_abs(from_torch.double() - exact)
    error = oracle.max_abs(out.double() - exact)
    limit = oracle.error_limit(torch_error)
    norm = float(exact.norm())
    found.figures["error"] = error
    found.figures["torch_error"] = torch_error
    found.figures["share_of_limit"] = error / limit
    found.figures["relative_error"] = float((out.double() - exact).norm()) / norm if norm > 0 else error
    found.require(error <= limit, f"error {error:.3g} is above {limit:.3g}, torch's own is {torch_error:.3g}")


def _judge_lse(found: Findings, lse: Guarded, exact: Tensor) -> None:
    empty = exact == -torch.inf
    found.require(bool(((lse.view == -torch.inf) == empty).all()), "lse is not -inf exactly in rows without a key")
    seen = exact[~empty]
    difference = lse.view[~empty].double() - seen
    found.figures["lse_error"] = oracle.max_abs(difference)
    excess = difference.abs().nan_to_num(torch.inf) - LSE_TOLERANCE * (1 + seen.abs() / 10)
    found.require(not bool((excess > 0).any()), f"lse is off by {found.figures['lse_error']:.3g}")


def _same_bits(first: tuple[Tensor, ...] | list[Tensor], second: tuple[Tensor, ...] | list[Tensor]) -> bool:
    """Bitwise equality, NaN included."""
    integers = {2: torch.int16, 4: torch.int32}
    return all(
        torch.equal(a.contiguous().view(integers[a.element_size()]), b.contiguous().view(integers[b.element_size()]))
        for a, b in zip(first, second, strict=True)
    )


def run(kernels: list[Kernel], report: Report, *, quick: bool) -> None:
    """Every pool and attend kernel on its cases; one line of progress a kernel."""
    for kernel in of_family(kernels, "pool"):
        group = Group(report, kernel.name)
        for case in QUICK_CASES[:3] if quick else RAGGED:
            group.case(str(case), partial(check_pool, kernel, case, report.device))
        group.close()
    for kernel in of_family(kernels, "attend"):
        group = Group(report, kernel.name)
        for case in QUICK_CASES if quick else ATTEND_CASES:
            group.case(str(case), partial(check_attend, kernel, case, report.device))
        group.close()
