"""python -m benchmarks.accuracy.vary: what one layer (or one list of blocks) set otherwise does to a sparse model.

Owns that sweep and its records. Everything else stays at the base setting, and only the layers from there on run again.
Must not choose (mixture.py does).
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.accuracy.command import exit_status
from benchmarks.accuracy.documents import load_documents
from benchmarks.accuracy.settings import parse_setting
from benchmarks.accuracy.smollm2 import SmolLM2, open_precise
from benchmarks.accuracy.sparse import BACKENDS, Backend, dense_layer, head_density, open_layers, sparse_layer
from prism_gen.calibrate.divergence import DensePredictions
from prism_gen.runtime import PrismAttention, load_bundle
from prism_gen.runtime.environment import environment
from prism_gen.runtime.thresholds import Thresholds
from prism_gen.sub_blocks import SubBlocks
from prism_gen.verify.report import emit

Record = dict[str, Any]


class Choice(NamedTuple):
    """What one layer does: None attends to everything. thresholds: over the attention's own."""

    attention: PrismAttention | None
    thresholds: Thresholds | None = None


class Varied:
    """A model with every layer at a base choice, and what leaving it in one place does."""

    def __init__(self, model: SmolLM2, ids: Tensor, backend: Backend) -> None:
        """Dense at first. ids: int64 [documents, tokens]."""
        self.model, self.ids, self.backend = model, ids, backend
        self.base: list[Choice] = [Choice(None)] * model.spec.num_layers
        dense = model.advance(model.embed(ids), partial(_dense, backend), range(len(self.base)))
        self.dense = DensePredictions(model.read_out(dense, ids))
        self._residuals: list[Tensor] = []

    def rebase(self, base: Sequence[Choice]) -> Record:
        """Runs a base, and keeps the residual before every layer: distance from dense and density, by document."""
        self.base, self._residuals = list(base), [self.model.embed(self.ids)]
        densities = []
        for layer, choice in enumerate(base):
            x, density = self.run(self._residuals[-1], layer, choice)
            self._residuals.append(x)
            densities.append(density)
        density = torch.stack(densities)  # [layers, documents, heads]
        found = self._judged(self._residuals.pop())
        return {**found, "density": density.mean((0, 2)).tolist(), "head_density": density.tolist()}

    def instead(self, layer: int, choice: Choice) -> Record:
        """With this layer alone at `choice`: the distance from dense, and the layer's density, by document."""
        x, density = self.run(self._residuals[layer], layer, choice)
        for after in range(layer + 1, len(self.base)):
            x, _ = self.run(x, after, self.base[after])
        return {**self._judged(x), "density": density.mean(-1).tolist(), "head_density": density.tolist()}

    def run(self, x: Tensor, layer: int, choice: Choice) -> tuple[Tensor, Tensor]:
        """The residual after the layer, and its density [documents, heads]."""
        seen: list[Tensor] = []

        def attention(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if choice.attention is None:
                seen.append(torch.ones(q.shape[0], q.shape[2], device=q.device))
                return dense_layer(q, k, v, self.backend)
            out, selection = sparse_layer(choice.attention, q, k, v, self.backend, thresholds=choice.thresholds)
            seen.append(head_density(selection, q.shape[2]))
            return out

        return self.model.advance(x, attention, range(layer, layer + 1)), seen[0]

    def _judged(self, residual: Tensor) -> Record:
        distance = self.dense.distance(self.model.read_out(residual, self.ids))
        return {name: [round(x, 9) for x in values] for name, values in distance._asdict().items()}


def vary_layers(varied: Varied, alternatives: dict[str, Sequence[PrismAttention | None]]) -> Iterator[Record]:
    """Every layer at every alternative. alternatives: name -> attention of each layer."""
    for layer in range(len(varied.base)):
        for name, attentions in alternatives.items():
            found = varied.instead(layer, Choice(attentions[layer]))
            del found["head_density"]
            yield {"what": "layer", "layer": layer, "setting": name, **found}


def vary_lists(varied: Varied, thresholds: Sequence[float]) -> Iterator[Record]:
    """Every list of every layer at each threshold, its neighbours at the base's."""
    for threshold, (layer, (attention, _)) in itertools.product(thresholds, enumerate(varied.base)):
        if attention is None:
            continue
        values = attention.thresholds.values
        columns = ("threshold",) if isinstance(attention.scoring, SubBlocks) else ("high", "low")
        for index in range(attention.model.num_lists):
            changed = values.clone()
            changed[index] = threshold
            named = {name: changed[:, i].tolist() for i, name in enumerate(columns)}
            found = varied.instead(layer, Choice(attention, attention.make_thresholds(**named)))
            found["density"] = [heads[index * attention.model.heads_per_list] for heads in found.pop("head_density")]
            yield {"what": "list", "layer": layer, "list": index, "threshold": threshold, **found}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 0, or 2 for a mistake in its arguments."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy.vary", description=__doc__)
    add = parser.add_argument
    add("--weights", type=Path, required=True, help="as for python -m benchmarks.accuracy")
    add("--docs", type=Path, required=True, help="folder of NAME.npz documents, of one length")
    add("--tokens", type=int, help="of each document; default all")
    add("--base", required=True, help='JSON: a prism object, or {"layers": [...]}')
    add("--setting", action="append", default=[], help="NAME=JSON of a prism object: an alternative for each layer")
    add("--settings", type=Path, help="JSON file of one object: name -> prism object")
    add("--threshold", type=float, action="append", default=[], help="an alternative for each list of each layer")
    add("--backend", choices=BACKENDS, required=True)
    add("--bundle", type=Path, help="kernels for --backend cuda")
    add("--out", type=Path, required=True, help="JSON lines, appended to")
    add("--commit", help="commit of this tree, where .git is absent")
    options = parser.parse_args(arguments)
    return exit_status(_run, options)


@torch.inference_mode()
def _run(options: argparse.Namespace) -> None:
    backend: Backend = options.backend
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = open_precise(options.weights, device)
    documents = load_documents(options.docs, [], tokens=options.tokens)
    ids = torch.stack([document.ids for document in documents]).to(device)
    bundle = None if options.bundle is None else load_bundle(options.bundle)

    given = {name: json.loads(prism) for name, _, prism in (text.partition("=") for text in options.setting)}
    if options.settings:
        given.update(json.loads(options.settings.read_text(encoding="utf-8")))
    given["base"] = json.loads(options.base)  # the last: what follows is about it
    opened: dict[str, Sequence[PrismAttention | None]] = {
        name: open_layers(model.spec, parse_setting(name, prism).of_layers(model.spec.num_layers), backend, bundle)
        for name, prism in given.items()
    }
    with options.out.open("a", encoding="utf-8") as out:
        head = {"section": "environment", "documents": [document.name for document in documents]}
        emit({**head, "backend": backend, **environment(device, commit=options.commit)}, out=out, echo=False)
        varied = Varied(model, ids, backend)
        for name, attentions in opened.items():
            found = varied.rebase([Choice(attention) for attention in attentions])
            if name != "base":
                del found["head_density"]
            emit({"section": "vary", "what": "everywhere", "setting": name, "prism": given[name], **found}, out=out)
        del opened["base"]
        for record in vary_layers(varied, opened):
            emit({"section": "vary", **record}, out=out, echo=False)
        for record in vary_lists(varied, options.threshold):
            emit({"section": "vary", **record}, out=out, echo=False)


def _dense(backend: Backend, _layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return dense_layer(q, k, v, backend)


if __name__ == "__main__":
    sys.exit(main())
