"""The judges take masses of any row constant: kernels choose it, and rounding of masses is all that it may change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.reference_cut import select_from_fixed
from prism_gen.runtime.rules import SelectRules
from prism_gen.verify.kernels import Kernel, of_family
from prism_gen.verify.reference_kernels import reference_kernels
from prism_gen.verify.reference_subblock_kernels import write_lists
from prism_gen.verify.report import Findings
from prism_gen.verify.select_cases import SelectCase
from prism_gen.verify.selection import check_select
from prism_gen.verify.subblock import check_score
from prism_gen.verify.subblock_cases import SubBlockCase

CPU = torch.device("cpu")
SELECT = of_family(reference_kernels(), "select")[0]
SCORE = of_family(reference_kernels(), "score")[0]
SELECT_CASE = SelectCase(1000, 1100, batch=2)
SCORE_CASE = SubBlockCase(700, 900, batch=2, means="flat")
INDICES, PROBS = 14, 17  # places in the arguments of both: three outputs from INDICES on, and then PROBS


def counted_by(
    kernel: Kernel, factor: Callable[[int], Tensor], grid: BlockGrid, thresholds: Tensor, rules: SelectRules
) -> Kernel:
    """The kernel with other masses, factor(num_q_blocks) of the reference's, and the lists that follow from them."""

    def launch(*given: Any) -> None:
        outputs = [torch.empty_like(x) for x in given[INDICES:PROBS]]
        bands = thresholds.shape[1]
        masses = torch.empty(*outputs[1].shape[:2], bands, grid.num_q_blocks, grid.num_k_blocks, dtype=torch.int32)
        kernel.launch(*given[:INDICES], *outputs, masses, *given[PROBS + 1 :])
        masses = (masses * factor(grid.num_q_blocks)[:, None].double()).round().int()
        write_lists(select_from_fixed(masses, thresholds, grid, rules), *given[INDICES : PROBS + 1])

    return replace(kernel, launch=launch)


def judged_select(factor: Callable[[int], Tensor]) -> Findings:
    case = SELECT_CASE
    return check_select(counted_by(SELECT, factor, case.grid, case.thresholds(CPU), case.rules), case, CPU)


def judged_score(factor: Callable[[int], Tensor]) -> Findings:
    case, grid = SCORE_CASE, SCORE_CASE.grid(SCORE.problem)
    return check_score(counted_by(SCORE, factor, grid, case.thresholds(CPU), case.rules), case, CPU)


@pytest.mark.parametrize("judged", [judged_select, judged_score], ids=["select", "score"])
def test_each_row_may_have_its_own_constant(judged: Callable[..., Findings]) -> None:
    """From 2**29 to 2**30, another for every row."""
    found = judged(lambda rows: torch.linspace(0.5, 1.0, rows))
    assert found.problems == []
    assert found.figures["identical_scores_differing_rows"] == 0


@pytest.mark.parametrize("judged", [judged_select, judged_score], ids=["select", "score"])
def test_masses_too_coarse_for_their_probabilities_are_caught(judged: Callable[..., Findings]) -> None:
    """Some thousand to a row: the lists are those of the masses, which have lost what the probabilities were."""
    found = judged(lambda rows: torch.full((rows,), 2.0**-18))
    assert any("probs are off" in problem for problem in found.problems), found.problems
    assert found.figures["identical_scores_differing_rows"] == 0
