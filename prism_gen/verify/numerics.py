"""Numerics of attend on small shapes against float64, beside pool's (pooling.py): the section `numerics`.

Owns what a right answer of attend is. Must not know where kernels come from.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from prism_gen.verify import oracle, pooling, rotation
from prism_gen.verify.buffers import Guarded, guarded, guarded_like
from prism_gen.verify.cases import ATTEND_CASES, QUICK_CASES, Case
from prism_gen.verify.kernels import Kernel, of_family
from prism_gen.verify.masks import compact
from prism_gen.verify.report import Aspect, Findings, Group, Report, Trial

LSE_TOLERANCE = 1e-4  # absolute, plus the same share of |lse| / 10: fp32 scores, ex2.approx and lg2.approx
LAUNCHES = 2  # the second must give the same bits


def check_attend(kernel: Kernel, case: Case, device: torch.device) -> Findings:
    """attend against float64, with torch's own error on the same inputs as the measure."""
    found, problem = Findings(), kernel.problem
    grid = case.grid(problem.block_size_q, problem.block_size_k)
    q, k, v = case.qkv(problem.head_dim, kernel.dtype, device)
    block_mask = case.block_mask(grid, device, problem.heads_per_list)
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
    found.require(_same_bits(results[0], results[1]), "two launches differ", "repeat")
    found.require(out.intact(), "wrote outside out", "bounds")
    found.require(lse is None or lse.intact(), "wrote outside lse", "bounds")
    mask = oracle.token_mask(block_mask.repeat_interleave(problem.heads_per_list, 1), grid)
    if case.mask == "all":  # dense attention, by a mask that knows no blocks
        mask = oracle.causal_mask(grid, device).expand_as(mask)
    exact, exact_lse = oracle.attend(q, k, v, mask, scale)
    judge_out(
        found, out.view, exact, oracle.torch_attend(q, k, v, mask, scale), "dense" if case.mask == "all" else "answer"
    )
    if lse is not None:
        _judge_lse(found, lse, exact_lse)
    return found


def judge_out(found: Findings, out: Tensor, exact: Tensor, from_torch: Tensor, aspect: Aspect) -> None:
    """out against float64, torch's error on the same inputs as the measure."""
    torch_error = oracle.max_abs(from_torch.double() - exact)
    error = oracle.max_abs(out.double() - exact)
    limit = oracle.error_limit(torch_error)
    norm = float(exact.norm())
    found.figures["error"] = error
    found.figures["torch_error"] = torch_error
    found.figures["share_of_limit"] = error / limit
    found.figures["relative_error"] = float((out.double() - exact).norm()) / norm if norm > 0 else error
    found.require(error <= limit, f"error {error:.3g} is above {limit:.3g}, torch's own is {torch_error:.3g}", aspect)


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


def trials(kernel: Kernel, device: torch.device, *, quick: bool) -> Iterator[Trial]:
    """One attend kernel on its cases."""
    shared = (case.shared_by(kernel.problem.heads_per_list) for case in (QUICK_CASES if quick else ATTEND_CASES))
    for case in dict.fromkeys(shared):
        yield Trial(kernel.name, str(case), partial(check_attend, kernel, case, device))


def run(kernels: list[Kernel], report: Report, *, quick: bool) -> None:
    """Every pool, rotate and attend kernel on its cases; one line of progress a kernel."""
    pooling.run(kernels, report, quick=quick)
    rotation.run(kernels, report, quick=quick)
    for kernel in of_family(kernels, "attend"):
        Group(report, kernel.name).run(trials(kernel, report.device, quick=quick))
