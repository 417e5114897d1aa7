"""python -m benchmarks.equal_perplexity.parts: the parts of a mixture that benchmarks.accuracy judged, to be timed.

Owns how layers are put together: those of one way count as one part, at their mean density over all documents.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from benchmarks.accuracy.records import Record, family, read_records
from benchmarks.equal_perplexity.ways import Part


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes NAME.parts.json for every setting of the records that differs from layer to layer."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.equal_perplexity.parts", description=__doc__)
    parser.add_argument("records", type=Path, help="JSON lines of python -m benchmarks.accuracy")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    by_setting: dict[str, list[Record]] = defaultdict(list)
    for record in read_records(options.records):
        if "selections" in record:
            by_setting[record["setting"]].append(record)
    for name, records in by_setting.items():
        path = options.out / f"{name.replace(' ', '-')}.parts.json"
        path.write_text(json.dumps(parts(records), indent=1) + "\n", encoding="utf-8")
    return 0


def parts(records: Sequence[Record]) -> list[Part]:
    """Of the records of one setting, one a document."""
    layers: dict[str, list[float]] = defaultdict(list)
    selections = {}
    for layer, selection in enumerate(records[0]["selections"]):
        way = "dense" if selection is None else family({"selection": {**selection, "profile": None}})
        selections[way] = selection and {**selection, "profile": None}
        layers[way].append(sum(record["density_of_layers"][layer] for record in records) / len(records))
    return [
        {"selection": selections[way], "layers": len(of_way), "density": round(sum(of_way) / len(of_way), 4)}
        for way, of_way in layers.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
