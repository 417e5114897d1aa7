"""The cut of a row of masses: what a threshold's share of their sum is, whatever their scale. Sums are done by hand."""

from __future__ import annotations

import math

import pytest
import torch

from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.reference_cut import FIXED_ONE, cut, shares, to_fixed


def kept(masses: list[int], threshold: float) -> list[int]:
    """The blocks kept of one row that sees them all."""
    grid = BlockGrid(len(masses), len(masses), len(masses), 1)
    row = torch.tensor(masses, dtype=torch.int32).reshape(1, 1, 1, 1, -1)
    mask = cut(row, torch.tensor([[threshold]]), grid)
    return mask.flatten().nonzero().flatten().tolist()


def fp32_beside(threshold: float, towards: float) -> float:
    return float(torch.nextafter(torch.tensor(threshold), torch.tensor(towards)))


BELOW_ONE = fp32_beside(1.0, 0.0)  # 1 - 2**-24
LEAST = 2.0**-126  # of the normal fp32 numbers


@pytest.mark.parametrize(
    ("masses", "threshold", "blocks"),
    [
        ([5, 5, 5, 5], 0.25, 1),  # 5 of 20 are enough
        ([5, 5, 5, 5], 0.5, 2),
        ([5, 5, 5, 5], fp32_beside(0.25, 1.0), 2),
        ([5, 5, 5, 5], fp32_beside(0.5, 1.0), 3),
        ([5, 5, 5, 5], fp32_beside(0.5, 0.0), 2),
        ([7, 7, 7], 0.5, 2),  # 10.5 of 21
        ([3, 2], 0.6, 2),  # the fp32 number lies above 3/5
        ([3, 1], 0.75, 1),
    ],
    ids=str,
)
def test_equal_shares_are_exact(masses: list[int], threshold: float, blocks: int) -> None:
    assert kept(masses, threshold) == list(range(blocks))


@pytest.mark.parametrize("threshold", [LEAST, 2.0**-40, 0.05, 0.3, 0.5, 0.95, BELOW_ONE], ids=str)
def test_a_scaled_row_keeps_the_same_blocks(threshold: float) -> None:
    """Rows with ties and zeros; a sum of 2**30 and one of some hundreds are cut alike."""
    torch.manual_seed(2)
    masses = torch.randint(0, 9, (1, 16, 1, 8, 24)).int()
    thresholds, grid = torch.full((16, 1), threshold), BlockGrid(24, 24, 3, 1)
    expected = cut(masses, thresholds, grid)
    assert expected.any()
    for scale in (2, 3, 7919, FIXED_ONE // (8 * 24)):
        assert cut(masses * scale, thresholds, grid).equal(expected)


@pytest.mark.parametrize(
    ("masses", "blocks"),
    [
        ([2**24 - 1, 1], 1),  # the share of 2**24 is one less
        ([2**24 - 2, 1, 1], 2),
        ([2**24, 1], 1),  # that of 2**24 + 1 is 2**24 - 2**-24, rounded up to 2**24
        ([2**24 - 1, 2], 2),
        ([7, 2, 1], 3),  # that of a small sum is all of it
        ([7, 0, 2, 0, 1], 3),  # but no block without mass
    ],
    ids=str,
)
def test_next_to_one_all_but_a_share_of_2_to_the_minus_24_is_kept(masses: list[int], blocks: int) -> None:
    assert len(kept(masses, BELOW_ONE)) == blocks


@pytest.mark.parametrize("threshold", [LEAST, 2.0**-40, 2.0**-32], ids=str)
def test_the_smallest_threshold_keeps_the_strongest_block(threshold: float) -> None:
    assert kept([2, 9, 9, 1], threshold) == [1]
    assert kept([FIXED_ONE // 2, FIXED_ONE // 2], threshold) == [0]
    assert kept([1], threshold) == [0]


def test_a_threshold_counts_to_2_to_the_minus_32() -> None:
    """2**-9 + 2**-32 of 2**30 is 2**21 and a quarter: one block may hold it with a mass more than the others."""
    threshold = fp32_beside(2.0**-9, 1.0)
    assert kept([2**21] * 512, threshold) == [0, 1]
    assert kept([2**21 + 1, *[2**21] * 510, 2**21 - 1], threshold) == [0]


def test_a_threshold_is_rounded_up_to_a_multiple_of_2_to_the_minus_32() -> None:
    """2**-10 - 2**-34 of 2**30 + 1 is less than 2**20, two blocks; 2**-10 of it is more."""
    assert kept([2**19] * 2048 + [1], fp32_beside(2.0**-10, 0.0)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("threshold", "blocks"), [(0.5, 1), (fp32_beside(0.5, 1.0), 2), (BELOW_ONE, 2), (0.25, 1)], ids=str
)
def test_a_sum_next_to_2_to_the_31_does_not_overflow(threshold: float, blocks: int) -> None:
    assert len(kept([2**30, 2**30 - 1, 0], threshold)) == blocks


@pytest.mark.parametrize("threshold", [1.0, 1.5, 2.0**40, math.inf, math.nan], ids=str)
def test_a_threshold_of_one_or_more_keeps_blocks_without_mass(threshold: float) -> None:
    assert kept([0, 4, 0], threshold) == [0, 1, 2]


@pytest.mark.parametrize("threshold", [0.0, -0.5, -math.inf], ids=str)
def test_a_threshold_of_zero_or_less_keeps_nothing(threshold: float) -> None:
    assert kept([0, 4, 0], threshold) == []


def test_a_row_of_nan_or_without_mass_keeps_all() -> None:
    probs = torch.full((1, 1, 1, 2, 2), math.nan)
    probs[..., 1, :] = 0.0
    grid = BlockGrid(2, 2, 1, 1)
    assert cut(to_fixed(probs), torch.tensor([[0.5]]), grid)[0, 0, 0].tolist() == [[True, False], [True, True]]


def test_hidden_blocks_count_for_nothing() -> None:
    """Row i sees i + 1 of equal masses, and keeps half of them, rounded up."""
    masses = torch.ones(1, 1, 1, 4, 4, dtype=torch.int32)
    sizes = cut(masses, torch.tensor([[0.5]]), BlockGrid(4, 4, 1, 1)).sum(-1)
    assert sizes.flatten().tolist() == [1, 1, 2, 2]


def test_shares_are_probabilities_whatever_the_scale() -> None:
    masses = torch.tensor([[1, 3, 0], [2**29, 2**30, 2**29], [0, 0, 0]], dtype=torch.int32)
    assert shares(masses).tolist() == [[0.25, 0.75, 0.0], [0.25, 0.5, 0.25], [0.0, 0.0, 0.0]]
