"""Which threshold each list of blocks takes, so that a budget of blocks does the least harm.

Owns the optimisation, on plain arrays. Must not know models or tensors.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
BISECTIONS = 60  # of the price of a block, over 60 octaves: the last halves far below one block
LOWEST_PRICE, HIGHEST_PRICE = 2.0**-40, 2.0**20  # harm per unit of density; costs are of order 1 and below


class Curves(NamedTuple):
    """What each threshold costs each list. harm, density: [layers, lists, thresholds]; thresholds: rising."""

    thresholds: Array
    harm: Array
    density: Array


def allocate(curves: Curves, target_density: float) -> Array:
    """The threshold of every list, [layers, lists], with the least total harm at a mean density of at most the target.

    Lagrange: every list takes the threshold that minimises harm + price * density, and bisection finds the lowest price
    that keeps the budget. Where even the lowest thresholds exceed it, these are taken.
    """
    low, high = np.log2(LOWEST_PRICE), np.log2(HIGHEST_PRICE)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if _density(curves, _choose(curves, 2.0**middle)) > target_density:
            low = middle
        else:
            high = middle
    return curves.thresholds[_choose(curves, 2.0**high)]


def expected_density(curves: Curves, thresholds: Array) -> float:
    """Mean density of the lists at thresholds that are among the curves'."""
    return _density(curves, np.searchsorted(curves.thresholds, thresholds))


def _choose(curves: Curves, price: float) -> NDArray[np.int64]:
    """The cheapest threshold of each list, the lowest of equals."""
    choice: NDArray[np.int64] = np.argmin(curves.harm + price * curves.density, axis=-1)
    return choice


def _density(curves: Curves, choice: NDArray[np.int64]) -> float:
    return float(np.take_along_axis(curves.density, choice[..., None], axis=-1).mean())
