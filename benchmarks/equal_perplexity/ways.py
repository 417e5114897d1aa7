"""The ways to attend that are compared, and the density at which each costs a model the same perplexity.

Owns how densities are looked up in what benchmarks.accuracy found. Must not time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import msgspec

from benchmarks.accuracy.records import family
from prism_gen.errors import ConfigError
from prism_gen.model import SelectionSpec
from prism_gen.model_config import selection_spec

PRISMS: tuple[dict[str, Any], ...] = (
    {"block_size": "64x64"},
    {"block_size": "128x64"},
    {"block_size": "128x128"},
    {"block_size": "64x64", "estimator": "subblock", "sub_block_q": 4, "sub_block_k": 8},
    {"block_size": "128x64", "estimator": "subblock", "sub_block_q": 4, "sub_block_k": 16},
    {"block_size": "128x128", "estimator": "subblock", "sub_block_q": 4, "sub_block_k": 16},
    {"block_size": "32x64", "estimator": "subblock", "sub_block_q": 4, "sub_block_k": 8, "share": "group"},
)
MIXTURE = "mixture"


class Way(NamedTuple):
    """One selection at one density. of: what it is a part of, itself or a mixture; layers: how many take this part.

    selection: None attends to everything.
    """

    name: str
    selection: SelectionSpec | None
    density: float
    of: str
    layers: int = 1


def single_ways(densities: Path, percent: float, prisms: tuple[dict[str, Any], ...] = PRISMS) -> list[Way]:
    """Each of `prisms` at its density for `percent` more perplexity.

    densities: JSON of `python -m benchmarks.accuracy.equal`. Raises: ConfigError where that does not hold a density.
    """
    found = json.loads(densities.read_text(encoding="utf-8"))
    ways = []
    for prism in prisms:
        selection = selection_spec(prism)
        name = family({"selection": msgspec.to_builtins(selection)})
        density = found.get(name, {}).get("at_percent", {}).get(f"{percent:g}")
        if density is None:
            raise ConfigError(
                f"{densities} has no density of {name!r} at +{percent:g} %",
                exists=", ".join(found) or "nothing",
                fix="run python -m benchmarks.accuracy.equal on records that enclose it",
            )
        ways.append(Way(name, selection, density, name))
    return ways


class Part(TypedDict):
    """Layers of a mixture that attend in one way. selection: as in records, None for dense; density: their mean."""

    selection: dict[str, Any] | None
    layers: int
    density: float


def mixture_ways(path: Path) -> list[Way]:
    """The parts in a JSON file of benchmarks.equal_perplexity.parts; the mixture is named by the file."""
    mixture = f"{MIXTURE} {path.name.partition('.parts')[0]}"
    parts: list[Part] = json.loads(path.read_text(encoding="utf-8"))
    ways = []
    for part in parts:
        selection = None if part["selection"] is None else msgspec.convert(part["selection"], SelectionSpec)
        name = "dense" if selection is None else family({"selection": part["selection"]})
        ways.append(Way(name, selection, part["density"], mixture, part["layers"]))
    return ways
