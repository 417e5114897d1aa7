"""From a model and texts to a selection profile: curves, allocation, and for a perplexity target the search between.

Owns that search and the profile's provenance. Must not load models (integrations/text_model.py does) or print.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor

from prism_gen import __version__
from prism_gen.calibrate.allocate import Array, Curves, allocate, expected_density
from prism_gen.calibrate.curves import THRESHOLDS, measure_curves
from prism_gen.calibrate.measured import AROUND, measured_curves
from prism_gen.calibrate.model import CausalModel
from prism_gen.calibrate.sparse import SparseRun, dense_run, open_layers
from prism_gen.errors import ConfigError, UnsupportedError
from prism_gen.model import ModelSpec
from prism_gen.profile import SelectionProfile
from prism_gen.runtime.attention import PrismAttention
from prism_gen.runtime.load import Bundle
from prism_gen.sub_blocks import estimator_label, sub_blocks

STEPS = 6  # halvings of the range of densities for a perplexity target: to 1/64 of it
Say = Callable[[str], None]
Harm = Literal["gradient", "measured"]


class Target(NamedTuple):
    """What the profile is to reach on the texts: perplexity over dense in percent, or a mean density in (0, 1]."""

    kind: Literal["ppl", "density"]
    value: float


class Measured(NamedTuple):
    """Perplexity over dense in percent and mean density, over all texts."""

    increase_percent: float
    density: float


class Calibrated(NamedTuple):
    """A profile, and what it and the selection's own thresholds measure on the texts it was found on."""

    profile: SelectionProfile
    measured: Measured


def calibrate(
    model: CausalModel,
    texts: Sequence[Tensor],
    target: Target,
    *,
    provenance: dict[str, Any],
    say: Say,
    harm: Harm = "gradient",
    bundle: Bundle | None = None,
) -> Calibrated:
    """The profile that reaches the target with the fewest blocks, for the model's selection at its first block size.

    texts: ids, int64 [tokens], on the model's device. provenance: joins the profile's own. harm: how it is found, from
    gradients of the dense model or by running the sparse one. bundle: kernels to run the sparse model with.
    Raises: UnsupportedError for a model with layers of another kind, or a cut by number; ConfigError where no profile
    reaches the target.
    """
    spec = without_profile(model.spec)
    _check(spec)
    layers = open_layers(spec, bundle)
    if harm == "measured":
        base = _one_threshold(model, layers, texts, target, say)
        say(f"running {spec.num_layers * spec.num_lists * (len(AROUND) - 1)} changes of one list on {len(texts)} texts")
        curves = measured_curves(model, layers, texts, base)
    else:
        say(f"measuring {len(THRESHOLDS)} thresholds in {spec.num_layers} layers on {len(texts)} texts")
        curves = measure_curves(model, open_layers(spec, None), texts, THRESHOLDS)
    thresholds, measured = _search(model, layers, texts, curves, target, say)
    fine = sub_blocks(spec.selection, spec.rope, spec.head_dim, spec.selection.block_sizes[0])
    profile = SelectionProfile(
        estimator=estimator_label(fine),
        share=spec.selection.share,
        block_size=spec.selection.block_sizes[0],
        thresholds=tuple(tuple(float(x) for x in row) for row in thresholds),
        provenance={
            "generator": f"prism_gen {__version__}",
            "model": spec.name,
            "target": f"{target.kind} {target.value:g}",
            "harm": harm,
            "tokens": [len(ids) for ids in texts],
            "increase_percent": round(measured.increase_percent, 3),
            "density": round(measured.density, 4),
            **provenance,
        },
    )
    return Calibrated(profile, measured)


def without_profile(spec: ModelSpec) -> ModelSpec:
    """The model with one threshold for all."""
    return msgspec.structs.replace(spec, selection=msgspec.structs.replace(spec.selection, profile=None))


def measure(
    model: CausalModel, layers: Sequence[PrismAttention], texts: Sequence[Tensor], thresholds: Array | None = None
) -> Measured:
    """Perplexity and density with every layer sparse. thresholds: [layers, lists]; None: the layers' own."""
    losses, densities = [], []
    dense = dense_run(model.spec)
    with torch.inference_mode():
        for ids in texts:
            sparse = SparseRun(layers, thresholds)
            losses.append(float((model.nll(ids[None], sparse).double() - model.nll(ids[None], dense).double()).mean()))
            densities.append(float(torch.stack(sparse.densities).mean()))
    return Measured(100 * (float(np.exp(np.mean(losses))) - 1), float(np.mean(densities)))


def _one_threshold(
    model: CausalModel, layers: Sequence[PrismAttention], texts: Sequence[Tensor], target: Target, say: Say
) -> float:
    """The lowest of THRESHOLDS that comes to the target for all lists alike: what each is varied about."""
    shape = (len(layers), model.spec.num_lists)

    def reaches(step: int) -> bool:
        found = measure(model, layers, texts, np.full(shape, THRESHOLDS[step]))
        say(f"one threshold {THRESHOLDS[step]:g}: perplexity {found.increase_percent:+.2f} % at {found.density:.3f}")
        return found.increase_percent <= target.value if target.kind == "ppl" else found.density >= target.value

    return THRESHOLDS[min(bisect.bisect_left(range(len(THRESHOLDS)), True, key=reaches), len(THRESHOLDS) - 1)]


def _search(
    model: CausalModel,
    layers: Sequence[PrismAttention],
    texts: Sequence[Tensor],
    curves: Curves,
    target: Target,
    say: Say,
) -> tuple[Array, Measured]:
    """For a density, its allocation; for a perplexity, the lowest density found whose allocation reaches it."""
    if target.kind == "density":
        thresholds = allocate(curves, target.value)
        return thresholds, measure(model, layers, texts, thresholds)
    low, high = (float(curves.density[..., column].mean()) for column in (0, -1))
    best: tuple[Array, Measured] | None = None
    for _ in range(STEPS):
        density = (low * high) ** 0.5  # what matters is the ratio of blocks
        thresholds = allocate(curves, density)
        found = measure(model, layers, texts, thresholds)
        say(f"density {found.density:.3f}: perplexity {found.increase_percent:+.2f} %")
        if found.increase_percent <= target.value:
            best, high = (thresholds, found), density
        else:
            low = density
    if best is None:
        raise ConfigError(
            f"no profile found within {target.value:g} % of dense perplexity",
            exists=f"densities from {expected_density(curves, allocate(curves, 0.0)):.3f} to 1 were tried",
            fix="raise the target, or calibrate on more text",
        )
    return best


def _check(spec: ModelSpec) -> None:
    other = sorted({kind for kind in spec.layer_kinds if kind != "full"})
    if other:
        raise UnsupportedError(
            f"{spec.name} has {', '.join(other)} layers",
            exists="models whose every layer attends to everything",
            fix="give the layers their thresholds by hand: PrismAttention(threshold=...)",
        )
    if spec.selection.cut != "top_p":
        raise UnsupportedError(
            f"a selection by {spec.selection.cut}",
            exists="selections by cumulative probability",
            fix="leave top_k and density out of the prism object",
        )
