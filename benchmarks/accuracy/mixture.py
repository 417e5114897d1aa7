"""python -m benchmarks.accuracy.mixture: which setting each layer takes, so that attention's time does the least harm.

Owns that choice, from what vary.py measured (harm) and benchmarks.equal_perplexity timed (cost). Must not run a model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from benchmarks.accuracy.records import family
from prism_gen.calibrate.allocate import Curves, allocate
from prism_gen.model_config import selection_spec

Record = dict[str, Any]


class Cost(NamedTuple):
    """Milliseconds of one layer: choosing blocks, and attending to all of them at the speed of some."""

    choosing_ms: float
    attending_ms: float

    def at(self, density: float) -> float:
        """Milliseconds at a density; attending is linear in it."""
        return self.choosing_ms + density * self.attending_ms


class Found(NamedTuple):
    """A choice: the alternative of each layer, what it costs and is predicted to do (nats beyond the base)."""

    names: tuple[str, ...]
    densities: tuple[float, ...]
    ms: float
    harm: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes settings for benchmarks.accuracy, and of each its parts for benchmarks.equal_perplexity."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy.mixture", description=__doc__)
    add = parser.add_argument
    add("--vary", type=Path, required=True, help="JSON lines of python -m benchmarks.accuracy.vary")
    add("--times", type=Path, required=True, help="JSON lines of python -m benchmarks.equal_perplexity")
    add("--heads", default="32x8x128", help="q heads x kv heads x head_dim that was timed")
    add("--tokens", type=int, default=131072, help="length that was timed")
    add("--ms", type=float, action="append", required=True, help="mean milliseconds of a layer; a mixture for each")
    add("--document", action="append", default=[], help="documents whose harm counts; default all")
    add("--out", type=Path, required=True, help="folder for settings.json and NAME.parts.json")
    options = parser.parse_args(arguments)
    records = [json.loads(line) for line in options.vary.read_text(encoding="utf-8").splitlines()]
    timed = [json.loads(line) for line in options.times.read_text(encoding="utf-8").splitlines()]
    *heads, head_dim = map(int, options.heads.split("x"))
    shape = {"heads": heads, "head_dim": head_dim, "tokens": options.tokens}
    prisms = {r["setting"]: r["prism"] for r in records if r.get("what") == "everywhere" and r["setting"] != "base"}
    costs = costs_of([line for line in timed if shape.items() <= line.items()])
    known = next(record["documents"] for record in records if "documents" in record)
    columns = [known.index(document) for document in options.document] or list(range(len(known)))
    options.out.mkdir(parents=True, exist_ok=True)
    settings = {}
    for ms in options.ms:
        found = choose(records, prisms, costs, ms, columns)
        name = f"mixture {ms:g}"
        settings[name] = {"layers": [prisms[chosen] for chosen in found.names]}
        path = options.out / f"{name.replace(' ', '-')}.parts.json"
        path.write_text(json.dumps(parts(found, prisms), indent=1) + "\n", encoding="utf-8")
        density = sum(found.densities) / len(found.densities)
        print(f"{name}: {found.ms:.2f} ms, harm {found.harm:+.5f}, density {density:.3f}: {' '.join(found.names)}")
    (options.out / "settings.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    return 0


def costs_of(timed: Sequence[Record]) -> dict[str, Cost]:
    """Of each way that was timed by itself."""
    costs = {}
    for record in timed:
        if record["way"] == "dense":
            costs["dense"] = Cost(0.0, record["ms"])
        elif record.get("of") == record["way"]:
            stages = record["stages_ms"]
            costs[record["way"]] = Cost(stages["pool"] + stages["select"], stages["attend"] / record["density"])
    return costs


def way_of(prism: Any) -> str:
    """The name that a prism object's way has in records."""
    return "dense" if prism is None else family({"selection": msgspec.to_builtins(selection_spec(prism))})


def choose(
    records: Sequence[Record], prisms: dict[str, Any], costs: dict[str, Cost], ms: float, documents: Sequence[int]
) -> Found:
    """The alternatives with the least harm whose mean time is at most `ms`, by one price for all layers.

    Harm adds up over layers as if they did not know of each other. documents: columns of the records that count.
    """
    base = next(record for record in records if record.get("setting") == "base")
    unchanged = np.mean([base["divergence"][i] for i in documents])
    by_layer: dict[int, dict[str, Record]] = defaultdict(dict)
    for record in records:
        if record.get("what") == "layer":
            by_layer[record["layer"]][record["setting"]] = record
    names = list(prisms)
    rows = [[by_layer[layer][name] for name in names] for layer in sorted(by_layer)]
    density = np.array([[np.mean([row["density"][i] for i in documents]) for row in layer] for layer in rows])
    harm = np.array([[np.mean([row["divergence"][i] for i in documents]) for row in layer] for layer in rows])
    cost = np.array([[costs[way_of(prisms[n])].at(d) for n, d in zip(names, layer, strict=True)] for layer in density])
    scale = costs["dense"].at(1.0)
    curves = Curves(np.arange(len(names), dtype=np.float64), (harm - unchanged)[:, None], cost[:, None] / scale)
    chosen = allocate(curves, ms / scale)[:, 0].astype(int)
    layers = np.arange(len(rows))
    return Found(
        tuple(names[i] for i in chosen),
        tuple(density[layers, chosen].tolist()),
        float(cost[layers, chosen].mean()),
        float((harm - unchanged)[layers, chosen].sum()),
    )


def parts(found: Found, prisms: dict[str, Any]) -> list[Record]:
    """The layers of each way together: how many, and their mean density."""
    together: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for name, density in zip(found.names, found.densities, strict=True):
        together[way_of(prisms[name])].append((name, density))
    return [
        {
            "prism": prisms[layers[0][0]],
            "layers": len(layers),
            "density": round(sum(density for _, density in layers) / len(layers), 4),
        }
        for layers in together.values()
    ]


if __name__ == "__main__":
    sys.exit(main())
