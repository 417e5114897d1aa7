"""The records of benchmarks.accuracy as they are read back: those of sparse settings, and what a curve joins.

Owns their reading. Must not draw or run a model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def read_records(path: Path) -> list[Record]:
    """The records of sparse settings in a file."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line.get("what") == "sparse"]


def family(record: Record) -> str:
    """What a curve joins: one way to score and one block size, whatever the threshold; or "mixture"."""
    if "selection" not in record:
        return "mixture"
    selection = record["selection"]
    (q, k), *_ = selection["block_sizes"]
    name = "paper"
    if selection["estimator"] != "paper":
        sizes = f"{selection['sub_block_q'] or 8}x{selection['sub_block_k'] or 8}"
        name = f"sub-blocks {sizes} {selection['reduce']}"
        name += ", shared by a group" if selection["share"] == "group" else ""
        name += ", forced excluded" if selection["exclude_forced"] else ""
    name += ", calibrated" if selection.get("profile") else ""
    return f"{name}, {q}x{k}"
