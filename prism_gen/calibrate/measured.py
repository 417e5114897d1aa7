"""Harm of each list of blocks as the sparse model itself shows it: one list is set otherwise, and the model is run.

Owns that measurement. Slower than curves.py by the number of lists, and true where that one only extrapolates: about a
model whose other lists are sparse already, and make up for, or rely on, what this one drops.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from prism_gen.calibrate.allocate import Array, Curves
from prism_gen.calibrate.curves import THRESHOLDS
from prism_gen.calibrate.divergence import DensePredictions
from prism_gen.calibrate.model import CausalModel
from prism_gen.calibrate.sparse import SparseRun, dense_run
from prism_gen.runtime.attention import PrismAttention

AROUND = (-4, -2, 0, 2, 4)  # of THRESHOLDS about the base's: what is left behind halves or doubles every other step


def nearest_step(threshold: float) -> int:
    """The step of THRESHOLDS nearest in what a cut leaves behind."""
    return min(range(len(THRESHOLDS)), key=lambda step: abs(THRESHOLDS[step] - threshold))


def measured_curves(
    model: CausalModel, layers: Sequence[PrismAttention], texts: Sequence[Tensor], base: float
) -> Curves:
    """Divergence beyond the base's (nats a token) and density of every list at five thresholds, the mean over texts.

    layers: the selection of each layer. base: the threshold, one of THRESHOLDS, at which every other list stays.
    """
    steps = [nearest_step(base) + step for step in AROUND]
    thresholds = [THRESHOLDS[step] for step in steps if 0 <= step < len(THRESHOLDS)]
    lists = model.spec.num_lists
    harm = np.zeros((len(layers), lists, len(thresholds)))
    density = np.zeros_like(harm)
    with torch.inference_mode():
        for ids in texts:
            dense = DensePredictions(model.predictions(ids[None], dense_run(model.spec)))
            unchanged = np.full((len(layers), lists), base)
            at_base, base_density = _run(model, layers, ids, unchanged, dense)
            for place in np.ndindex(harm.shape):
                layer, index, column = place
                if thresholds[column] == base:
                    density[place] += base_density[layer, index] / len(texts)
                    continue
                changed = unchanged.copy()
                changed[layer, index] = thresholds[column]
                divergence, densities = _run(model, layers, ids, changed, dense)
                harm[place] += (divergence - at_base) / len(texts)
                density[place] += densities[layer, index] / len(texts)
    return Curves(np.asarray(thresholds), harm, density)


def _run(
    model: CausalModel, layers: Sequence[PrismAttention], ids: Tensor, thresholds: Array, dense: DensePredictions
) -> tuple[float, Array]:
    """Divergence of the model at these thresholds, [layers, lists], and its densities."""
    run = SparseRun(layers, thresholds)
    (divergence,) = dense.distance(model.predictions(ids[None], run)).divergence
    return divergence, torch.stack(run.densities).double().cpu().numpy()
