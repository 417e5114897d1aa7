"""Selection: the cut-off on identical scores, and the whole path against float64: the section `select`.

Owns what a right selection is. Must not know where kernels come from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from prism_gen.rope import Bands
from prism_gen.runtime import reference
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.reference_pool import pool as pool_blocks
from prism_gen.runtime.selection import Selection, visible_blocks
from prism_gen.verify import oracle
from prism_gen.verify.buffers import GUARD_INT, Guarded, guarded
from prism_gen.verify.kernels import Kernel, bands_of, of_family
from prism_gen.verify.pooling import find_pool, launch_pool
from prism_gen.verify.report import Findings, Group, Report, Trial
from prism_gen.verify.select_cases import FUSED_CASES, QUICK_SELECT_CASES, SELECT_CASES, SelectCase

SPARE_BLOCKS = 5  # of a cache of key means: odd, so that heads start at any multiple of 16 bytes
PROBS_L1_TOLERANCE = 1e-4  # a row's sum of |p - exact|: fp32 logits of magnitude 20, ex2.approx, rounding of masses


@dataclass(frozen=True)
class Scored:
    """Means and energies that select reads, in the order of its arguments."""

    q_mean: Tensor
    k_mean: Tensor
    q_energy: Tensor
    k_energy: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.q_mean, self.k_mean, self.q_energy, self.k_energy))


@dataclass(frozen=True)
class Lists:
    """select's outputs in guarded buffers."""

    block_indices: Guarded
    block_counts: Guarded
    wanted_counts: Guarded
    probs: Guarded | None

    def mask(self, found: Findings, grid: BlockGrid) -> Tensor:
        """The lists as a mask, after they proved safe to expand; notes every breach of the list format.

        Raises: ValueError where the lists cannot be expanded.
        """
        counts, indices = self.block_counts.view, self.block_indices.view
        most = min(grid.num_k_blocks, indices.shape[-1])
        if bool(((counts < 0) | (counts > most)).any()):
            raise ValueError(f"block_counts lie in {int(counts.min())}..{int(counts.max())}, of {most}")
        used = torch.arange(indices.shape[-1], device=indices.device) < counts[..., None]
        listed = indices[used]
        if listed.numel() and bool(((listed < 0) | (listed >= grid.num_k_blocks)).any()):
            raise ValueError(f"block_indices lie in {int(listed.min())}..{int(listed.max())}, of {grid.num_k_blocks}")
        rising = (indices[..., 1:] > indices[..., :-1]) | ~used[..., 1:]
        found.require(bool(rising.all()), "block_indices do not rise")
        found.require(bool((indices[~used] == GUARD_INT).all()), "wrote behind a row's count", "bounds")
        guards = (self.block_indices, self.block_counts, self.wanted_counts)
        found.require(all(buffer.intact() for buffer in guards), "wrote outside the lists", "bounds")
        found.require(self.probs is None or self.probs.intact(), "wrote outside probs", "bounds")
        return Selection(indices, counts, grid).block_mask()


def launch_select(kernel: Kernel, case: SelectCase, scored: Scored, thresholds: Tensor, *, probs: bool) -> Lists:
    """One launch into fresh guarded outputs."""
    grid, device = case.grid, thresholds.device
    rows = (case.batch, case.num_lists, grid.num_q_blocks)
    max_blocks = grid.num_k_blocks if case.rules.max_blocks is None else min(case.rules.max_blocks, grid.num_k_blocks)
    lists = Lists(
        guarded((*rows, max_blocks), torch.int32, device),
        guarded(rows, torch.int32, device),
        guarded(rows, torch.int32, device),
        guarded((*rows[:2], 2, *rows[2:], grid.num_k_blocks), torch.int32, device) if probs else None,
    )
    needed = kernel.scratch_floats(*case.scratch_sizes) if kernel.scratch_floats else 0
    scratch = torch.full((needed,), float("nan"), device=device) if needed else None
    lengths = (grid.block_size_q, grid.block_size_k, grid.seqlen_q, grid.seqlen_k)
    outputs = [buffer.view for buffer in (lists.block_indices, lists.block_counts, lists.wanted_counts)]
    wanted_probs = lists.probs.view if lists.probs else None
    kernel.launch(*scored, thresholds, *lengths, *case.rules.kernel_arguments(), *outputs, wanted_probs, scratch)
    return lists


def check_select(kernel: Kernel, case: SelectCase, device: torch.device) -> Findings:
    """select on given means: zero differing rows on its own scores, and every row explained against float64."""
    found, bands = Findings(), bands_of(kernel.problem)
    q_mean, k_mean = case.means(kernel.problem.head_dim, device)
    scored = Scored(q_mean, k_mean, *(band_energy(mean, bands) for mean in (q_mean, k_mean)))
    exact = Scored(*(t.double() for t in scored))
    judge_select(found, kernel, case, scored, exact)
    return found


def band_energy(mean: Tensor, bands: Bands) -> Tensor:
    """Energies that pool would have written beside `mean` [..., head_dim]: [..., 3]."""
    square = mean * mean
    dims = (torch.tensor(band, device=mean.device) for band in (bands.high_dims, bands.low_dims))
    return torch.stack([*(square[..., band].sum(-1) for band in dims), square.sum(-1)], dim=-1)


def in_cache(scored: Scored) -> Scored:
    """The same with the key side in a larger tensor, as PooledKeys keeps it; what lies behind is NaN."""
    larger = []
    for x in (scored.k_mean, scored.k_energy):
        whole = torch.full((*x.shape[:2], x.shape[2] + SPARE_BLOCKS, x.shape[3]), float("nan"), device=x.device)
        whole[:, :, : x.shape[2]] = x
        larger.append(whole[:, :, : x.shape[2]])
    return Scored(scored.q_mean, larger[0], scored.q_energy, larger[1])


def judge_select(found: Findings, kernel: Kernel, case: SelectCase, scored: Scored, exact: Scored) -> None:
    """Launches select on `scored` and judges it; `exact` holds the same means and energies in float64."""
    grid, thresholds = case.grid, case.thresholds(scored.q_mean.device)
    lists = launch_select(kernel, case, scored, thresholds, probs=True)
    mask = lists.mask(found, grid)
    if lists.probs is None:
        raise ValueError("select was launched without probs")
    probs = lists.probs.view
    wanted = reference.select_from_fixed(probs, thresholds, grid, case.rules)
    differing = int((wanted.block_mask() != mask).any(-1).sum())
    same_wish = wanted.wanted_counts is not None and torch.equal(lists.wanted_counts.view, wanted.wanted_counts)
    found.require(same_wish, "wanted_counts differ from the reference on identical scores")
    found.figures["rows"] = mask[..., 0].numel()
    found.figures["identical_scores_differing_rows"] = differing
    found.require(differing == 0, f"{differing} rows differ from the reference on identical scores")
    plain = launch_select(kernel, case, in_cache(scored), thresholds, probs=False)
    same = torch.equal(plain.mask(found, grid), mask)
    change = "the lists change between two launches, without probs, or where key means lie in a cache"
    found.require(same, change, "repeat")
    exact_probs = reference.band_probs(
        *exact, bands=bands_of(kernel.problem), grid=grid, calibrate_by=case.rules.calibration
    )
    if case.rules.share == "group":
        exact_probs = reference.group_probs(exact_probs, case.num_kv_heads)
    judge_fused(found, case, probs, mask, exact_probs)
    found.figures["density"] = float(mask.sum()) / (case.batch * case.num_lists * grid.total_visible)


def judge_fused(found: Findings, case: SelectCase, probs: Tensor, mask: Tensor, exact_probs: Tensor) -> None:
    """Compares with float64: the masses, the rows that differ, and whether rounding of a cut-off explains each."""
    grid, thresholds = case.grid, case.thresholds(mask.device)
    visible = visible_blocks(grid, probs.device)
    off = ((reference.shares(probs) - exact_probs) * visible).abs().sum(-1)
    found.figures["probs_l1"] = oracle.max_abs(off)
    found.require(found.figures["probs_l1"] <= PROBS_L1_TOLERANCE, f"probs are off by {found.figures['probs_l1']:.3g}")
    exact_fixed = reference.to_fixed(exact_probs)
    wanted = reference.select_from_fixed(exact_fixed, thresholds, grid, case.rules)
    differing = (wanted.block_mask() != mask).any(-1)
    found.figures["float64_differing_rows"] = int(differing.sum())
    if case.rules.cut != "top_p" or case.rules.max_blocks is not None:
        return  # what explains a row there is the order of two values, which this judge does not know
    chosen = reference.cut(probs, thresholds, grid)
    unexplained = oracle.rows_off_the_cut(chosen, exact_probs, thresholds, grid).any(-2) & differing
    found.figures["unexplained_rows"] = int(unexplained.sum())
    found.require(not bool(unexplained.any()), "rows differ from float64 away from any cut-off", "ties")


def check_fused(pool: Kernel, select: Kernel, case: SelectCase, device: torch.device) -> Findings:
    """pool of q and k, then select, against float64 from the tokens on."""
    found, bands = Findings(), bands_of(select.problem)
    tokens = case.tokens(select.problem.head_dim, pool.dtype, device)
    sizes = (case.block_size_q, case.block_size_k)
    q_mean, q_energy, k_mean, k_energy = launch_pool(pool, *tokens, sizes).views
    exact = [pool_blocks(x.double(), size, bands) for x, size in zip(tokens, sizes, strict=True)]
    wanted = Scored(exact[0][0], exact[1][0], exact[0][1], exact[1][1])
    judge_select(found, select, case, Scored(q_mean, k_mean, q_energy, k_energy), wanted)
    return found


def trials(kernel: Kernel, device: torch.device, *, quick: bool) -> Iterator[Trial]:
    """One select kernel on given means."""
    for case in QUICK_SELECT_CASES if quick else SELECT_CASES:
        yield Trial(kernel.name, str(case), partial(check_select, kernel, case, device))


def fused_trials(
    kernels: list[Kernel], select: Kernel, dtype: torch.dtype, device: torch.device, *, quick: bool
) -> Iterator[Trial]:
    """One select kernel behind the pool of its bands, on tokens of `dtype`."""
    for case in FUSED_CASES[:2] if quick else FUSED_CASES:
        pool = find_pool(kernels, select, (case.block_size_q, case.block_size_k), dtype)
        if pool is not None:
            name = f"{select.name}-from-{dtype}-tokens"
            yield Trial(name, str(case), partial(check_fused, pool, select, case, device))


def run(kernels: list[Kernel], report: Report, *, quick: bool) -> None:
    """Every select kernel on given means, then pool and select together on tokens."""
    for kernel in of_family(kernels, "select"):
        Group(report, kernel.name).run(trials(kernel, report.device, quick=quick))
        for dtype in sorted({pool.dtype for pool in of_family(kernels, "pool")}, key=str):
            fused = fused_trials(kernels, kernel, dtype, report.device, quick=quick)
            Group(report, f"{kernel.name}-from-{dtype}-tokens").run(fused)
