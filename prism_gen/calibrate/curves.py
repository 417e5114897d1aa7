"""How much each list of blocks loses, and how many blocks it takes, at each of a row of thresholds.

Owns the measure of harm: what dropping blocks does to the model's own loss, to second order. With g the gradient of
the text's negative log-likelihood with respect to a list's attention output, and d what selection changes of that
output, the loss of a token changes by about g.d + (g.d)**2 / 2 (the empirical Fisher matrix in place of the Hessian).
Over a text the first part averages out where the model is trained, and is noise of the text; the second is summed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from prism_gen.calibrate.allocate import Array, Curves
from prism_gen.calibrate.changes import directional_changes
from prism_gen.calibrate.model import Attention, CausalModel
from prism_gen.calibrate.sparse import dense_run
from prism_gen.runtime.attention import PrismAttention
from prism_gen.runtime.connect import model_rules
from prism_gen.runtime.reference_cut import select_from_fixed
from prism_gen.runtime.results import Stats

# The steps of the search: even in what a cut leaves behind (1 - threshold), about a factor of 1.4 each.
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.78, 0.84, 0.89, 0.92, 0.945, 0.96, 0.972, 0.98, 0.986, 0.99, 0.993, 0.995, 1.0)


def measure_curves(
    model: CausalModel, layers: Sequence[PrismAttention | None], texts: Sequence[Tensor], thresholds: Sequence[float]
) -> Curves:
    """Harm (nats a token) and density of every list at every threshold, the mean over texts.

    layers: the selection of each layer on the reference backend; None for one that attends to everything, whose harm
    and density are 0. texts: ids, int64 [tokens], on the model's device.
    """
    harm = np.zeros((len(layers), model.spec.num_lists, len(thresholds)))
    density = np.zeros_like(harm)
    for ids in texts:
        gradients = _output_gradients(model, ids)
        dense = dense_run(model.spec)
        probe = _Probe(dense, layers, gradients, thresholds, harm, density, weight=1 / len(texts))
        with torch.no_grad():
            model.nll(ids[None], probe)
    return Curves(np.asarray(thresholds, dtype=np.float64), harm, density)


def _output_gradients(model: CausalModel, ids: Tensor) -> list[Tensor]:
    """Of the summed loss with respect to each layer's attention output, [tokens, num_q_heads, head_dim]."""
    shifts: list[Tensor] = []
    dense = dense_run(model.spec)

    def shifted(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shifts.append(torch.zeros_like(q, requires_grad=True))
        return dense(layer, q, k, v) + shifts[-1]

    with torch.enable_grad():
        total = model.nll(ids[None], shifted).sum()
        return [gradient[0] for gradient in torch.autograd.grad(total, shifts)]


class _Probe:
    """Dense attention that also measures what each threshold would have changed."""

    def __init__(
        self,
        dense: Attention,
        layers: Sequence[PrismAttention | None],
        gradients: Sequence[Tensor],
        thresholds: Sequence[float],
        harm: Array,
        density: Array,
        *,
        weight: float,
    ) -> None:
        self._dense, self._layers, self._gradients, self._thresholds = dense, layers, gradients, thresholds
        self._harm, self._density, self._weight = harm, density, weight

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attention = self._layers[layer]
        dense = self._dense(layer, q, k, v)
        if attention is None:
            return dense
        scored = attention.select(attention.pool(q, k), with_probs=True)
        assert scored.probs is not None  # it was asked for
        num_lists, bands = scored.probs.shape[1:3]
        rules = model_rules(attention.model.selection)
        cuts = (torch.full((num_lists, bands), threshold, device=q.device) for threshold in self._thresholds)
        selections = [select_from_fixed(scored.probs, cut, scored.grid, rules) for cut in cuts]
        changes = directional_changes(
            q, k, v, self._gradients[layer], selections, softmax_scale=attention.softmax_scale
        )
        harm = changes.square().sum(-1) / (2 * q.shape[1])  # [num_q_heads, thresholds]
        self._harm[layer] += self._weight * harm.reshape(num_lists, -1, len(selections)).sum(1).double().cpu().numpy()
        density = torch.stack([Stats.of(selection).density[0] for selection in selections], dim=-1)
        self._density[layer] += self._weight * density.double().cpu().numpy()
        return dense
