"""subpool and score against float64: sub-block means, key-block probabilities, and the lists made of them.

Owns what a right answer of the subblock estimator is, and both raw signatures on the side of the checks. Must not know
where kernels come from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from prism_gen.families import ScoreProblem
from prism_gen.model import SUB_BLOCK_SIZES
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.reference_cut import FIXED_ONE, cut, forced_blocks, select_from_fixed, shares, to_fixed
from prism_gen.runtime.reference_pool import pool_chunk
from prism_gen.runtime.rules import CUT_KINDS
from prism_gen.verify import oracle
from prism_gen.verify.buffers import guarded
from prism_gen.verify.cases import QUICK_CASES, RAGGED, Case
from prism_gen.verify.kernels import Kernel, of_family
from prism_gen.verify.report import Findings, Group, Report, Trial
from prism_gen.verify.selection import Lists
from prism_gen.verify.sub_means import SubMeans
from prism_gen.verify.subblock_cases import (
    QUICK_SUB_BLOCK_CASES,
    SUB_BLOCK_CASES,
    SubBlockCase,
    in_tile_order,
)

# A sum over a key block is kept to 2^-11 of itself; logits of magnitude M carry about M * 2^-20 in fp32.
PROBS_TOLERANCE = 2e-3  # relative
LOGIT_TOLERANCE = 2**-20  # relative, for each unit of the largest logit
CUT_EPS = 2e-3  # what these may move a cumulative sum by
LAUNCHES = 2  # the second must give the same bits


def check_subpool(kernel: Kernel, case: Case, device: torch.device, *, sizes: tuple[int, int], start: int) -> Findings:
    """Means of q and of the keys from token `start` on; those before leave the sums of their last sub-block."""
    found = Findings()
    q, k, _ = case.qkv(kernel.problem.head_dim, kernel.dtype, device)
    tail_in = pool_chunk(k[:, :start], sizes[1], None).tail.contiguous() if start else None
    means = SubMeans.of(q, k[:, start:], sizes, start, tail_in)
    kernel.launch(q, k[:, start:], *means.arguments)
    means.judge(found, q, k[:, start:])
    return found


def launch_score(
    kernel: Kernel, case: SubBlockCase, means: tuple[Tensor, Tensor], thresholds: Tensor, *, probs: bool
) -> Lists:
    """One launch into fresh guarded outputs. means: of q, and of k in tile order."""
    rules, device = case.rules, thresholds.device
    grid = case.grid(kernel.problem)
    rows = (case.batch, case.num_lists, grid.num_q_blocks)
    max_blocks = grid.num_k_blocks if rules.max_blocks is None else min(rules.max_blocks, grid.num_k_blocks)
    lists = Lists(
        guarded((*rows, max_blocks), torch.int32, device),
        guarded(rows, torch.int32, device),
        guarded(rows, torch.int32, device),
        guarded((*rows[:2], 1, *rows[2:], grid.num_k_blocks), torch.int32, device) if probs else None,
    )
    sizes = (case.sub_block_q, case.sub_block_k, case.seqlen_q, case.seqlen_k)
    heads, index = (case.num_q_heads, case.num_kv_heads), device.index or 0
    floats = kernel.scratch_floats(case.batch, *heads, *sizes, index) if kernel.scratch_floats else 0
    kernel.launch(
        *means,
        thresholds,
        softmax_scale(kernel.problem),
        *sizes,
        int(rules.force_sink),
        int(rules.force_recent),
        int(rules.share == "group"),
        int(case.reduce == "mean"),
        int(case.exclude_forced),
        CUT_KINDS.index(rules.cut),
        *(buffer.view for buffer in (lists.block_indices, lists.block_counts, lists.wanted_counts)),
        lists.probs.view if lists.probs else None,
        torch.full((floats,), float("nan"), device=device),
    )
    return lists


def softmax_scale(problem: ScoreProblem) -> float:
    """The usual one."""
    return float(problem.head_dim**-0.5)


def exact_scores(case: SubBlockCase, problem: ScoreProblem, q: Tensor, k: Tensor) -> tuple[Tensor, float]:
    """Key-block scores in float64 [batch, num_lists, num_q_blocks, num_k_blocks], rows of any sum; largest |logit|.

    q, k: fp16 means in order. One dense product per batch entry, written apart from runtime/reference_subblock.py.
    """
    grid, fine, group = case.grid(problem), case.fine, case.num_q_heads // case.num_kv_heads
    row_sees = [fine.num_visible(row) for row in range(fine.num_q_blocks)]
    sees = torch.tensor(row_sees, device=q.device)[:, None]
    hidden = torch.arange(fine.num_k_blocks, device=q.device) >= sees
    pad = (0, grid.num_k_blocks * problem.columns_per_block - fine.num_k_blocks)
    pad_rows = (0, 0, 0, grid.num_q_blocks * problem.rows_per_block - fine.num_q_blocks)
    results, largest = [], 0.0
    for entry_q, entry_k in zip(q.double(), k.double(), strict=True):
        by_head = []
        for head in range(case.num_q_heads):
            logits = entry_q[head] @ entry_k[head // group].T * softmax_scale(problem)
            largest = max(largest, oracle.max_abs(logits))
            mass = F.pad(logits.masked_fill_(hidden, -math.inf).softmax(-1), pad)
            blocks = mass.reshape(len(sees), -1, problem.columns_per_block).sum(-1)
            rows = F.pad(blocks, pad_rows).reshape(-1, problem.rows_per_block, grid.num_k_blocks)
            by_head.append(rows.amax(1) if case.reduce == "max" else rows.sum(1))
        heads = torch.stack(by_head).reshape(case.num_lists, -1, grid.num_q_blocks, grid.num_k_blocks)
        results.append(heads.amax(1) if case.reduce == "max" else heads.sum(1))
    return torch.stack(results), largest


def exact_probs(case: SubBlockCase, grid: BlockGrid, scores: Tensor) -> Tensor:
    """What is cut, float64 [batch, num_lists, 1, num_q_blocks, num_k_blocks]."""
    probs = scores / scores.sum(-1, keepdim=True)
    if case.exclude_forced:
        free = probs.masked_fill(forced_blocks(grid, case.rules, probs.device), 0.0)
        rest = free.sum(-1, keepdim=True)
        probs = torch.where(rest * FIXED_ONE < 1.0, probs, free / rest)
    return probs[:, :, None]


def check_score(kernel: Kernel, case: SubBlockCase, device: torch.device) -> Findings:
    """score on given means: no differing rows on its own probabilities, and these and the lists against float64."""
    found, problem = Findings(), kernel.problem
    grid, thresholds = case.grid(problem), case.thresholds(device)
    q, k = case.sub_means(problem.head_dim, device)
    launches = [launch_score(kernel, case, (q, in_tile_order(k)), thresholds, probs=True) for _ in range(LAUNCHES)]
    masks = [lists.mask(found, grid) for lists in launches]
    first, second = (lists.probs.view for lists in launches if lists.probs is not None)
    found.require(torch.equal(masks[0], masks[1]) and torch.equal(first, second), "two launches differ", "repeat")
    plain = launch_score(kernel, case, (q, in_tile_order(k)), thresholds, probs=False).mask(found, grid)
    found.require(torch.equal(plain, masks[0]), "the lists change when probs is not asked for", "repeat")
    wanted = select_from_fixed(first, thresholds, grid, case.rules)
    differing = int((wanted.block_mask() != masks[0]).any(-1).sum())
    found.figures.update(rows=masks[0][..., 0].numel(), identical_scores_differing_rows=differing)
    found.require(differing == 0, f"{differing} rows differ from the reference on identical probabilities")
    same_wish = wanted.wanted_counts is not None and torch.equal(launches[0].wanted_counts.view, wanted.wanted_counts)
    found.require(same_wish, "wanted_counts differ from the reference on identical probabilities")
    scores, largest = exact_scores(case, problem, q, k)
    _judge_probs(found, case, grid, (first, masks[0]), exact_probs(case, grid, scores), largest)
    found.figures["density"] = float(masks[0].sum()) / (case.batch * case.num_lists * grid.total_visible)
    return found


def _judge_probs(
    found: Findings,
    case: SubBlockCase,
    grid: BlockGrid,
    ours: tuple[Tensor, Tensor],
    exact: Tensor,
    largest_logit: float,
) -> None:
    """ours: masses, 2**29 or more of them to a row, and mask. exact: float64 probabilities."""
    probs, mask = ours
    thresholds = case.thresholds(probs.device)
    beyond_rounding = ((shares(probs) - exact).abs() - 1 / FIXED_ONE).clamp_min(0)  # half a mass
    error = beyond_rounding / exact.clamp_min(1 / FIXED_ONE)
    limit = PROBS_TOLERANCE + LOGIT_TOLERANCE * largest_logit
    found.figures.update(probs_error=oracle.max_abs(error), largest_logit=largest_logit)
    found.require(found.figures["probs_error"] <= limit, f"probs are off by {found.figures['probs_error']:.3g} of them")
    wanted = select_from_fixed(to_fixed(exact), thresholds, grid, case.rules)
    differing = (wanted.block_mask() != mask).any(-1)
    found.figures["float64_differing_rows"] = int(differing.sum())
    if case.rules.cut != "top_p" or case.rules.max_blocks is not None:
        return  # what explains a row there is the order of two values, which this judge does not know
    chosen = cut(probs, thresholds, grid)
    off = oracle.rows_off_the_cut(chosen, exact, thresholds, grid, eps=max(CUT_EPS, limit)).any(-2) & differing
    found.figures["unexplained_rows"] = int(off.sum())
    found.require(not bool(off.any()), "rows differ from float64 away from any cut-off", "ties")


def subpool_trials(kernel: Kernel, device: torch.device, *, quick: bool) -> Iterator[Trial]:
    """One subpool kernel on token tensors of every layout, all pairs of sub-blocks, whole and from a later token on."""
    sizes = [(q, k) for q in SUB_BLOCK_SIZES for k in SUB_BLOCK_SIZES]
    for i, case in enumerate(QUICK_CASES[:3] if quick else RAGGED):
        for pair in sizes[i % 3 :: 3]:
            for start in dict.fromkeys((0, case.seqlen_k // 2)):
                check = partial(check_subpool, kernel, case, device, sizes=pair, start=start)
                yield Trial(kernel.name, f"{case}-{pair[0]}x{pair[1]}-from{start}", check)


def score_trials(kernel: Kernel, device: torch.device, *, quick: bool) -> Iterator[Trial]:
    """One score kernel on given means."""
    for case in QUICK_SUB_BLOCK_CASES if quick else SUB_BLOCK_CASES:
        yield Trial(kernel.name, str(case), partial(check_score, kernel, case, device))


def run(kernels: list[Kernel], report: Report, *, quick: bool) -> None:
    """Every subpool and score kernel on its cases; one line of progress a kernel."""
    for family, trials in (("subpool", subpool_trials), ("score", score_trials)):
        for kernel in of_family(kernels, family):
            Group(report, kernel.name).run(trials(kernel, report.device, quick=quick))
