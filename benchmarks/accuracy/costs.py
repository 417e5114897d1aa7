"""What a layer costs in time, by the way it attends and its density, as benchmarks.equal_perplexity timed it.

Owns that model: choosing blocks costs what it costs, attending is linear in the density. Must not time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from benchmarks.accuracy.records import Record, family
from prism_gen.model_config import selection_spec


class Cost(NamedTuple):
    """Milliseconds of one layer: choosing blocks, and attending to all of them at the speed of some."""

    choosing_ms: float
    attending_ms: float

    def at(self, density: float) -> float:
        """Milliseconds at a density; attending is linear in it."""
        return self.choosing_ms + density * self.attending_ms


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
