"""python -m benchmarks.accuracy.equal: the density at which each way to select costs the same perplexity.

Owns that interpolation, of records that benchmarks.accuracy wrote. Must not run a model.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.accuracy.records import Record, family, read_records


class Point(NamedTuple):
    """One setting, means over its documents: density, perplexity over dense in percent."""

    density: float
    increase_percent: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads JSON lines of benchmarks.accuracy and writes one JSON object: way to select -> percent -> density."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy.equal", description=__doc__)
    parser.add_argument("records", type=Path, nargs="+", help="JSON lines of python -m benchmarks.accuracy")
    parser.add_argument("--percent", type=float, action="append", required=True, help="perplexity over dense")
    parser.add_argument("--out", type=Path, required=True, help="JSON")
    options = parser.parse_args(arguments)
    records = [record for path in options.records for record in read_records(path)]
    found = {
        name: {
            "at_percent": {f"{percent:g}": density_at(points, percent) for percent in options.percent},
            "measured": [point._asdict() for point in points],
        }
        for name, points in curves(records).items()
    }
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def curves(records: Sequence[Record]) -> dict[str, list[Point]]:
    """Of each way to select and block size, its settings by rising density."""
    by_setting: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        by_setting[family(record), record["setting"]].append(record)
    points: dict[str, list[Point]] = defaultdict(list)
    for (name, _), rows in by_setting.items():
        density, increase = (sum(row[key] for row in rows) / len(rows) for key in ("density", "increase_percent"))
        points[name].append(Point(round(density, 4), round(increase, 3)))
    return {name: sorted(points[name]) for name in sorted(points)}


def density_at(points: Sequence[Point], percent: float) -> float | None:
    """Density at which the curve costs `percent`, linear in the logarithm of the cost; None beyond its points."""
    for lower, upper in itertools.pairwise(points):
        if lower.increase_percent >= percent >= upper.increase_percent > 0:
            whole = math.log(lower.increase_percent / upper.increase_percent)
            share = math.log(lower.increase_percent / percent) / whole if whole else 0.0
            return round(lower.density + share * (upper.density - lower.density), 4)
    return None


if __name__ == "__main__":
    sys.exit(main())
