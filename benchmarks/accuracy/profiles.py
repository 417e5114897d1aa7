"""python -m benchmarks.accuracy.profiles: thresholds by layer and list, from what vary.py measured of each list.

Owns the way from its records to selection profiles, each chosen without one of the documents. Must not run a model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from prism_gen.calibrate.allocate import Array, Curves, allocate, expected_density
from prism_gen.model_config import selection_spec
from prism_gen.profile import SelectionProfile
from prism_gen.sub_blocks import DEFAULT_TOKENS, SubBlocks, estimator_label

Record = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes settings for benchmarks.accuracy: a profile for each density and document that is left out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy.profiles", description=__doc__)
    add = parser.add_argument
    add("--vary", type=Path, required=True, help="JSON lines of python -m benchmarks.accuracy.vary --threshold ...")
    add("--density", type=float, action="append", required=True, help="mean density on the documents that count")
    add("--out", type=Path, required=True, help="JSON of settings")
    options = parser.parse_args(arguments)
    records = [json.loads(line) for line in options.vary.read_text(encoding="utf-8").splitlines()]
    documents = next(record["documents"] for record in records if "documents" in record)
    prism = next(record["prism"] for record in records if record.get("setting") == "base")
    settings = {}
    for left_out in (*documents, None):
        columns = [index for index, document in enumerate(documents) if document != left_out]
        curves = curves_of(records, columns)
        for density in options.density:
            thresholds = allocate(curves, density)
            name = f"without {left_out or 'none'} {density:g}"
            settings[name] = {**prism, "profile": profile_of(prism, thresholds, without=left_out)}
            print(f"{name}: density {expected_density(curves, thresholds):.4f} expected")
    options.out.write_text(json.dumps(settings) + "\n", encoding="utf-8")
    return 0


def curves_of(records: Sequence[Record], documents: Sequence[int]) -> Curves:
    """Divergence beyond the base's and density of every list at every threshold, means over columns of the records."""
    base = next(record for record in records if record.get("setting") == "base")
    at_base = base["prism"]["threshold"]
    lists = [record for record in records if record.get("what") == "list"]
    thresholds = sorted({at_base, *(record["threshold"] for record in lists)})
    num_layers, num_lists = (1 + max(record[name] for record in lists) for name in ("layer", "list"))
    harm = np.zeros((num_layers, num_lists, len(thresholds)))
    heads = np.array(base["head_density"])[:, documents].mean(1)  # [layers, q heads]
    density = np.repeat(heads[:, :: heads.shape[1] // num_lists, None], len(thresholds), axis=-1)
    unchanged = np.mean([base["divergence"][i] for i in documents])
    for record in lists:
        place = record["layer"], record["list"], thresholds.index(record["threshold"])
        harm[place] = np.mean([record["divergence"][i] for i in documents]) - unchanged
        density[place] = np.mean([record["density"][i] for i in documents])
    return Curves(np.asarray(thresholds), harm, density)


def profile_of(prism: Any, thresholds: Sequence[Sequence[float]] | Array, *, without: str | None) -> Any:
    """The profile of the prism object, as JSON. thresholds: a row a layer; an empty one says nothing of its layer."""
    selection = selection_spec(prism)
    sizes = (selection.sub_block_q or DEFAULT_TOKENS, selection.sub_block_k or DEFAULT_TOKENS)
    fine = SubBlocks(*sizes, selection.reduce, selection.exclude_forced)
    profile = SelectionProfile(
        estimator=estimator_label(None if selection.estimator == "paper" else fine),
        share=selection.share,
        block_size=selection.block_sizes[0],
        thresholds=tuple(tuple(float(x) for x in row) for row in thresholds),
        provenance={"without": without},
    )
    return msgspec.to_builtins(profile)


if __name__ == "__main__":
    sys.exit(main())
