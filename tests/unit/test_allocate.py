"""allocate.py: against every combination of thresholds of a few lists."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from prism_gen.calibrate.allocate import Curves, allocate, expected_density

THRESHOLDS = np.array([0.5, 0.7, 0.9, 1.0])


def curves(seed: int) -> Curves:
    """Convex falling harm over rising density, as selection has them: 2 layers of 2 lists."""
    random = np.random.default_rng(seed)
    density = np.sort(random.uniform(0.05, 0.9, (2, 2, 4)))
    density[..., -1] = 1.0
    harm = random.uniform(0.01, 10.0, (2, 2, 1)) / density
    return Curves(THRESHOLDS, harm - harm[..., -1:], density)


@pytest.mark.parametrize("target", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("seed", range(5))
def test_no_combination_of_as_few_blocks_does_less_harm(seed: int, target: float) -> None:
    found = curves(seed)
    thresholds = allocate(found, target)
    density = expected_density(found, thresholds)
    assert density <= max(target, found.density[..., 0].mean())

    def total(values: np.ndarray, choice: np.ndarray) -> float:
        return float(np.take_along_axis(values, choice[..., None], -1).sum())

    ours = total(found.harm, np.searchsorted(THRESHOLDS, thresholds))
    for combination in product(range(4), repeat=4):
        choice = np.array(combination).reshape(2, 2)
        if total(found.density, choice) / 4 <= density + 1e-12:
            assert ours <= total(found.harm, choice) + 1e-12


def test_a_budget_of_everything_takes_what_harms_nothing() -> None:
    assert bool((allocate(curves(0), 1.0) == 1.0).all())


def test_a_budget_below_the_lowest_takes_the_lowest() -> None:
    assert bool((allocate(curves(0), 0.0) == 0.5).all())
