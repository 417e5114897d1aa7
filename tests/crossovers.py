"""Bundles whose manifest says from where sparse beats dense, as `build --tuning` writes it.

Owns the made-up measurements. Needs no torch.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from prism_gen.crossover import Crossing, Crossover
from prism_gen.manifest import MANIFEST_NAME, Tuning, encode_manifest, read_manifest


def write_crossover(bundle: Path, gpu: str, label: str, wins_below: dict[int, float]) -> None:
    """Puts one crossover into a bundle's manifest. label: of the attend problem. wins_below: density by tokens."""
    crossings = tuple(
        Crossing(seqlen=n, dense="fa4", dense_ms=1.0, selection_ms=0.1, attend_ms=((0.1, 0.2),), wins_below=below)
        for n, below in wins_below.items()
    )
    crossover = Crossover(arch="sm90", label=label, key="", heads=(32, 8), crossings=crossings)
    tuning = Tuning(digest="", gpu=gpu, driver="", cuda="", speedups={}, crossovers=(crossover,))
    manifest = msgspec.structs.replace(read_manifest(bundle), tuning=tuning)
    (bundle / MANIFEST_NAME).write_bytes(encode_manifest(manifest))
