"""python -m benchmarks.equal_perplexity.computed: times at other densities than those that were timed.

Owns that arithmetic (benchmarks/accuracy/costs.py): choosing costs what it costs, attending is linear in the density.
Records say "computed".
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.accuracy.costs import costs_of
from benchmarks.accuracy.records import Record
from benchmarks.equal_perplexity.ways import Way, mixture_ways, single_ways
from prism_gen.verify.report import emit


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes one record a shape, length and way."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.equal_perplexity.computed", description=__doc__)
    parser.add_argument("times", type=Path, help="JSON lines of python -m benchmarks.equal_perplexity")
    parser.add_argument("--mixture", type=Path, action="append", default=[], help="NAME.parts.json")
    parser.add_argument("--densities", type=Path, help="JSON of python -m benchmarks.accuracy.equal, for single ways")
    parser.add_argument("--percent", type=float, default=2.0, help="perplexity over dense, of --densities")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, appended to")
    options = parser.parse_args(arguments)
    timed = [json.loads(line) for line in options.times.read_text(encoding="utf-8").splitlines()]
    with options.out.open("a", encoding="utf-8") as out:
        emit({"section": "environment", "percent": options.percent, "times": str(options.times)}, out=out, echo=False)
        singles = [[way] for way in single_ways(options.densities, options.percent)] if options.densities else []
        for parts in (*singles, *map(mixture_ways, options.mixture)):
            for record in computed(timed, parts):
                emit(record, out=out)
    return 0


def computed(timed: Sequence[Record], parts: Sequence[Way]) -> Iterator[Record]:
    """Of each shape and length in the file."""
    layers = sum(part.layers for part in parts)
    for dense in (record for record in timed if record.get("way") == "dense"):
        place = {key: dense[key] for key in ("section", "heads", "head_dim", "tokens")}
        costs = costs_of([record for record in timed if place.items() <= record.items()])
        ms = sum(part.layers * costs[part.name].at(part.density) for part in parts) / layers
        yield {
            **place,
            "way": parts[0].of,
            "density": round(sum(part.layers * part.density for part in parts) / layers, 4),
            "ms": round(ms, 5),
            "times_dense": round(dense["ms"] / ms, 3),
            "computed": True,
        }


if __name__ == "__main__":
    sys.exit(main())
