"""The checks of subpool and score: the reference passes them, and each kind of wrong kernel is caught, on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from prism_gen.runtime.rules import SelectRules
from prism_gen.verify.cases import Case
from prism_gen.verify.kernels import Kernel, of_family
from prism_gen.verify.reference_kernels import reference_kernels
from prism_gen.verify.report import Findings
from prism_gen.verify.subblock import check_score, check_subpool
from prism_gen.verify.subblock_cases import SubBlockCase

CPU = torch.device("cpu")
SUBPOOL = of_family(reference_kernels(), "subpool")[0]
SCORE = of_family(reference_kernels(), "score")[0]
TOKENS = Case(200, 300, batch=2, layout="head_major")
CASE = SubBlockCase(700, 900, batch=2, means="flat")
# Places in score's arguments.
Q_SUB, K_SUB, INDICES, COUNTS, WANTED, PROBS = 0, 1, 14, 15, 16, 17

Change = Callable[[list[Any]], None]


def changed(kernel: Kernel, *, before: Change | None = None, after: Change | None = None) -> Kernel:
    """The kernel, with its arguments changed before each launch or its outputs behind it."""

    def launch(*given: Any) -> None:
        arguments = list(given)
        if before:
            before(arguments)
        kernel.launch(*arguments)
        if after:
            after(list(given))

    return replace(kernel, launch=launch)


def score(kernel: Kernel, case: SubBlockCase = CASE) -> Findings:
    return check_score(kernel, case, CPU)


def subpool(kernel: Kernel) -> Findings:
    return check_subpool(kernel, TOKENS, CPU, sizes=(4, 8), start=100)


def test_the_reference_passes() -> None:
    assert score(SCORE).problems == []
    assert subpool(SUBPOOL).problems == []


def set_argument(place: int, value: object) -> Change:
    def change(arguments: list[Any]) -> None:
        arguments[place] = value

    return change


def multiply_every_other(arguments: list[Any]) -> None:
    probs: Tensor | None = arguments[PROBS]
    if probs is not None:
        probs[..., ::2] = (probs[..., ::2].double() * 1.01).int()


def plain_order(arguments: list[Any]) -> None:
    k_sub: Tensor = arguments[K_SUB]
    arguments[K_SUB] = k_sub.nan_to_num(0).roll(1, 2)


def drop_a_block(arguments: list[Any]) -> None:
    arguments[COUNTS].sub_(1)


def write_behind(arguments: list[Any]) -> None:
    arguments[INDICES][..., -1] = 3


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (None, multiply_every_other, "probs are off"),
        (plain_order, None, "probs are off"),
        (set_argument(11, 1), None, "probs are off"),  # reduce_mean
        (set_argument(3, 0.2), None, "probs are off"),  # softmax_scale
        (None, drop_a_block, "rows differ from the reference on identical probabilities"),
        (None, write_behind, "wrote behind a row's count"),
    ],
    ids=["probs", "order", "reduce", "scale", "count", "behind"],
)
def test_a_wrong_score_is_caught(before: Change | None, after: Change | None, says: str) -> None:
    problems = score(changed(SCORE, before=before, after=after)).problems
    assert any(says in problem for problem in problems), problems


def test_lists_of_the_wrong_heads_are_caught() -> None:
    """q heads in another order belong to other groups."""
    shared = replace(CASE, rules=SelectRules(share="group"))
    assert score(SCORE, shared).problems == []
    swapped = changed(SCORE, before=lambda arguments: arguments.__setitem__(Q_SUB, arguments[Q_SUB].flip(1)))
    assert score(swapped, shared).problems


def nudge(tensor: Tensor) -> None:
    tensor[0, 0, 0, 0] += 0.01


@pytest.mark.parametrize(
    ("after", "says"),
    [
        (lambda arguments: nudge(arguments[2]), "q_sub has other bits"),
        (lambda arguments: arguments[3].copy_(arguments[3].roll(1, 2)), "wrote where no mean belongs"),
    ],
    ids=["mean", "place"],
)
def test_a_wrong_subpool_is_caught(after: Change, says: str) -> None:
    problems = subpool(changed(SUBPOOL, after=after)).problems
    assert any(says in problem for problem in problems), problems
