"""python -m benchmarks.accuracy.descend: settings by layer and list, each chosen with the others in place.

Owns the search: coordinate descent on divergence from the dense model + price * cost of attention. Layers are not
independent (one makes up for what another drops), so that each choice is judged in the sparse model as it stands.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.accuracy.command import exit_status
from benchmarks.accuracy.costs import Cost, costs_of, way_of
from benchmarks.accuracy.documents import load_documents
from benchmarks.accuracy.profiles import profile_of
from benchmarks.accuracy.settings import parse_setting
from benchmarks.accuracy.smollm2 import open_precise
from benchmarks.accuracy.sparse import BACKENDS, Backend, open_layers
from benchmarks.accuracy.vary import Choice, Varied
from prism_gen.calibrate.curves import THRESHOLDS
from prism_gen.calibrate.measured import nearest_step
from prism_gen.runtime import PrismAttention, load_bundle
from prism_gen.runtime.environment import environment
from prism_gen.sub_blocks import SubBlocks
from prism_gen.verify.report import emit

Record = dict[str, Any]


class Layer(NamedTuple):
    """A layer's state: which of the menu it takes, and the threshold of each list, as a step of THRESHOLDS."""

    kind: str
    steps: tuple[int, ...]


class Descent:
    """The search on some documents. Everything but the choice of a layer is read from the model's own spec."""

    def __init__(
        self,
        varied: Varied,
        menu: dict[str, Sequence[PrismAttention | None]],
        costs: dict[str, Cost],
        start: Sequence[Layer],
    ) -> None:
        """menu: kind -> attention of each layer. costs: of each kind, in the unit that a price is per."""
        self.varied, self.menu, self.costs, self.layers = varied, menu, costs, list(start)
        self.tried = 0

    def sweep(self, price: float, *, whole_layers: Sequence[Layer] = (), until: float) -> Record:
        """Once over all layers: every one of whole_layers in place of a layer, or else each list a step down and up.

        price: nats for one unit of cost of the mean layer. until: time.monotonic() at which to stop where it stands.
        """
        x = self.varied.model.embed(self.varied.ids)
        total = divergence = 0.0
        for layer in range(len(self.layers)):
            best, x, divergence, cost = self._best(layer, x, self._moves(layer, whole_layers), price, until)
            self.layers[layer] = best
            total += cost
        mean = total / len(self.layers)
        return {"price": price, "divergence": divergence, "cost": round(mean, 4), "tried": self.tried}

    def _moves(self, layer: int, whole_layers: Sequence[Layer]) -> Iterator[Layer]:
        """The state as it is, then whole layers, or steps of single lists from wherever the layer stands by then."""
        yield self.layers[layer]
        if whole_layers:
            yield from whole_layers
            return
        for index, at_first in enumerate(self.layers[layer].steps):
            for moved in (at_first - 1, at_first + 1):
                kind, steps = self.layers[layer]
                if 0 <= moved < len(THRESHOLDS) and steps[index] == at_first:  # the step down was not taken
                    yield Layer(kind, (*steps[:index], moved, *steps[index + 1 :]))

    def _best(
        self, layer: int, x: Tensor, moves: Iterator[Layer], price: float, until: float
    ) -> tuple[Layer, Tensor, float, float]:
        """Of the moves, with the residual after it, the divergence and the cost. The first is always tried."""
        found: tuple[float, Layer, Tensor, float, float] | None = None
        for move in moves:
            if found is not None and time.monotonic() > until:
                break
            self.tried += 1
            after, density = self.varied.run(x, layer, self._choice(layer, move))
            last = after
            for later in range(layer + 1, len(self.layers)):
                last, _ = self.varied.run(last, later, self._choice(later, self.layers[later]))
            distance = self.varied.dense.distance(self.varied.model.read_out(last, self.varied.ids))
            divergence = sum(distance.divergence) / len(x)
            cost = self.costs[move.kind].at(float(density.mean()))
            objective = divergence + price * cost / len(self.layers)
            if found is None or objective < found[0]:
                found = objective, move, after, divergence, cost
                self.layers[layer] = move  # the next moves start from here
        assert found is not None  # the first move is the state as it is
        return found[1:]

    def _choice(self, layer: int, state: Layer) -> Choice:
        attention = self.menu[state.kind][layer]
        if attention is None:
            return Choice(None)
        names = ("threshold",) if isinstance(attention.scoring, SubBlocks) else ("high", "low")
        values = [THRESHOLDS[step] for step in state.steps]
        return Choice(attention, attention.make_thresholds(**dict.fromkeys(names, values)))


def settings_of(layers: Sequence[Layer], prisms: dict[str, Any]) -> Record:
    """The state as a setting for benchmarks.accuracy: each layer's prism object with a profile of this layer alone."""
    found = []
    for index, (kind, steps) in enumerate(layers):
        prism = prisms[kind]
        if prism is not None:
            rows = [[THRESHOLDS[step] for step in steps] if i == index else [] for i in range(len(layers))]
            prism = {**prism, "profile": profile_of(prism, rows, without=None)}
        found.append(prism)
    return {"layers": found}


def start_of(setting: Any, menu: dict[str, Sequence[PrismAttention | None]], num_layers: int) -> list[Layer]:
    """The state nearest {"threshold": x}, or {"profile": ...} with a row a layer, of the menu's first kind."""
    kind = next(iter(menu))
    attention = menu[kind][0]
    assert attention is not None  # dense attention has no threshold to begin with
    lists = attention.model.num_lists
    rows = setting["profile"]["thresholds"] if "profile" in setting else [[setting["threshold"]] * lists] * num_layers
    return [Layer(kind, tuple(nearest_step(threshold) for threshold in row)) for row in rows]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 0, or 2 for a mistake in its arguments."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy.descend", description=__doc__)
    add = parser.add_argument
    add("--weights", type=Path, required=True, help="as for python -m benchmarks.accuracy")
    add("--docs", type=Path, required=True, help="folder of NAME.npz documents, of one length")
    add("--doc", action="append", default=[], help="name of a document; default all of the folder")
    add("--tokens", type=int, help="of each document; default all")
    add("--menu", type=Path, required=True, help="JSON: kind -> prism object without thresholds, or null for dense")
    add(
        "--start",
        default='{"threshold": 0.89}',
        help='JSON: {"threshold": x}, or a prism object with a profile, of the first kind',
    )
    add("--without", type=Path, help="JSON: document -> start of a search of its own that leaves this document out")
    add("--times", type=Path, help="JSON lines of benchmarks.equal_perplexity: cost in ms; default the density")
    add("--heads", default="32x8x128", help="of --times: q heads x kv heads x head_dim")
    add("--at-tokens", type=int, default=131072, help="of --times: length")
    add("--price", type=float, action="append", required=True, help="nats a unit of cost; one after the other")
    add("--layer-sweeps", type=int, default=0, help="of the first price, before its sweep over lists")
    add("--seconds", type=float, default=1e9, help="of each search, over all prices")
    add("--backend", choices=BACKENDS, required=True)
    add("--bundle", type=Path, help="kernels for --backend cuda")
    add("--out", type=Path, required=True, help="JSON of settings for python -m benchmarks.accuracy")
    add("--log", type=Path, required=True, help="JSON lines, appended to")
    add("--commit", help="commit of this tree, where .git is absent")
    options = parser.parse_args(arguments)
    return exit_status(_run, options)


@torch.inference_mode()
def _run(options: argparse.Namespace) -> None:
    backend: Backend = options.backend
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = open_precise(options.weights, device)
    documents = load_documents(options.docs, options.doc, tokens=options.tokens)
    prisms: dict[str, Any] = json.loads(options.menu.read_text(encoding="utf-8"))
    bundle, num_layers = options.bundle and load_bundle(options.bundle), model.spec.num_layers
    menu: dict[str, Sequence[PrismAttention | None]] = {
        kind: open_layers(model.spec, parse_setting(kind, prism).of_layers(num_layers), backend, bundle)
        for kind, prism in prisms.items()
    }
    costs = _costs(options, prisms)
    searches = {"": json.loads(options.start)}
    if options.without:
        searches = json.loads(options.without.read_text(encoding="utf-8"))
    settings = {}
    with options.log.open("a", encoding="utf-8") as log:
        emit({"section": "environment", **environment(device, commit=options.commit)}, out=log, echo=False)
        for left_out, start in searches.items():
            ids = torch.stack([document.ids for document in documents if document.name != left_out]).to(device)
            began = time.monotonic()
            state = start_of(start, menu, num_layers)
            descent = Descent(Varied(model, ids, backend), menu, costs, state)
            for found, record in _search(descent, options, menu, began + options.seconds):
                name = f"without {left_out} {found}" if left_out else found
                settings[name] = settings_of(descent.layers, prisms)
                seconds = round(time.monotonic() - began, 1)
                emit({"section": "descend", "setting": name, **record, "seconds": seconds}, out=log)
                options.out.write_text(json.dumps(settings) + "\n", encoding="utf-8")


def _search(
    descent: Descent, options: argparse.Namespace, menu: dict[str, Sequence[PrismAttention | None]], until: float
) -> Iterator[tuple[str, Record]]:
    """One record a sweep; a price's last says what it found."""
    whole = [
        Layer(kind, () if attentions[0] is None else (step,) * attentions[0].model.num_lists)
        for kind, attentions in menu.items()
        for step in ((0,) if attentions[0] is None else WHOLE_STEPS)
    ]
    for index, price in enumerate(options.price):
        for sweep in range(options.layer_sweeps if index == 0 else 0):
            yield f"price {price:g} layers {sweep}", descent.sweep(price, whole_layers=whole, until=until)
        yield f"price {price:g}", descent.sweep(price, until=until)


WHOLE_STEPS = (3, 5, 7, 9, 11)  # of THRESHOLDS, that a whole layer is tried at: .6, .78, .89, .945, .972


def _costs(options: argparse.Namespace, prisms: dict[str, Any]) -> dict[str, Cost]:
    if options.times is None:
        return dict.fromkeys(prisms, Cost(0.0, 1.0))
    *heads, head_dim = map(int, options.heads.split("x"))
    shape = {"heads": heads, "head_dim": head_dim, "tokens": options.at_tokens}
    timed = [json.loads(line) for line in options.times.read_text(encoding="utf-8").splitlines()]
    costs = costs_of([line for line in timed if shape.items() <= line.items()])
    return {kind: costs[way_of(prism)] for kind, prism in prisms.items()}


if __name__ == "__main__":
    sys.exit(main())
