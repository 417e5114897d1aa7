"""A stand that no GPU is behind: times follow a formula with seeded noise, and some candidates are wrong, die or hang.

Owns the formula, so that tests know which candidate must win. Must not import torch: it runs in spawned processes.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prism_gen.crossover import Crossing, Crossover, wins_below
from prism_gen.spec import KernelSpec
from prism_gen.tuning_table import Shape

NOISE = 0.004  # relative, of one run


@dataclass
class Simulated:
    """slower: key -> how many times the milliseconds of the fastest. steps: what was asked, in order."""

    slower: dict[str, float]
    wrong: frozenset[str] = frozenset()
    dies: frozenset[str] = frozenset()
    hangs: frozenset[str] = frozenset()
    steps: list[str] = field(default_factory=list)

    def problems(self, spec: KernelSpec) -> list[str]:
        self.steps.append(f"judge {spec.key}")
        if spec.key in self.dies:
            os._exit(139)
        if spec.key in self.hangs:
            time.sleep(60)
        return ["q17k17: error 1 is above 0.1"] if spec.key in self.wrong else []

    def time(
        self, specs: Sequence[KernelSpec], shape: Shape, heads: tuple[int, int], runs: int
    ) -> dict[str, tuple[float, ...]]:
        self.steps.append(f"time {shape.label}")
        draw = random.Random(f"{shape.label}{len(specs)}")
        base = shape.seqlen * shape.batch * shape.density / 1000
        return {
            spec.key: tuple(base * self.slower[spec.key] * draw.gauss(1, NOISE) for _ in range(runs)) for spec in specs
        }

    def crossover(self, spec: KernelSpec, seqlens: Sequence[int], heads: tuple[int, int]) -> Crossover | None:
        if spec.family != "attend":
            return None
        crossings = []
        for n in seqlens:
            points = tuple((density, n * density / 1000) for density in (0.1, 0.5, 1.0))
            below = wins_below(points, 1.0, n / 1000)
            crossings.append(
                Crossing(
                    seqlen=n, dense="made up", dense_ms=n / 1000, selection_ms=1.0, attend_ms=points, wins_below=below
                )
            )
        return Crossover(
            arch=spec.arch, label=spec.problem.label(), key=spec.key, heads=heads, crossings=tuple(crossings)
        )


def no_stand(bundle: Path | None) -> Simulated:
    """A stand that does not open."""
    raise OSError("no such bundle")


@dataclass(frozen=True)
class MakeSimulated:
    """How a process opens the stand, by name."""

    slower: dict[str, float]
    wrong: frozenset[str] = frozenset()
    dies: frozenset[str] = frozenset()
    hangs: frozenset[str] = frozenset()

    def __call__(self, bundle: Path | None) -> Simulated:
        return Simulated(self.slower, self.wrong, self.dies, self.hangs)
