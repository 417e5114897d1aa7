"""The race of schedules: who wins, what noise may not decide, and what it costs."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from prism_gen.tune.race import RUNS, num_timings, race
from prism_gen.tuning_table import Shape

SHAPES = tuple(Shape(seqlen=n) for n in (32768, 8192, 131072))


class Stand:
    """Times by formula: `ms(key, shape)` with relative noise; counts what it is asked."""

    def __init__(self, ms, *, noise: float = 0.003, seed: int = 0) -> None:
        self._ms, self._noise, self._draw = ms, noise, random.Random(seed)
        self.timings = 0

    def __call__(self, stage: str, shape: Shape, keys: Sequence[str], runs: int) -> dict[str, tuple[float, ...]]:
        assert runs == RUNS
        self.timings += len(keys)
        return {k: tuple(self._ms(k, shape) * self._draw.gauss(1, self._noise) for _ in range(runs)) for k in keys}


def names(count: int) -> list[str]:
    return [f"c{i}" for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16, 40])
@pytest.mark.parametrize("shapes", [SHAPES[:1], SHAPES], ids=["one shape", "three shapes"])
def test_the_fastest_wins_at_the_cost_that_was_reckoned(count, shapes):
    stand = Stand(lambda key, shape: shape.seqlen * (0.9 if key == f"c{count - 1}" else 1.0))
    outcome = race("default", names(count), shapes, stand)
    assert outcome.best == f"c{count - 1}"
    assert outcome.speedup == pytest.approx(1 / 0.9, rel=0.01)
    assert outcome.speedups.keys() == {shape.label for shape in shapes}
    assert stand.timings == num_timings(count + 1, len(shapes))


def test_halving_costs_far_less_than_every_candidate_on_every_shape():
    assert num_timings(41, 5) < 0.7 * 41 * 5


def test_the_default_stays_where_nothing_is_faster():
    outcome = race("default", names(9), SHAPES, Stand(lambda key, shape: 1.0 if key == "default" else 1.05))
    assert outcome == ("default", 1.0, {shape.label: 1.0 for shape in SHAPES})


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_never_replaces_the_default(seed):
    stand = Stand(lambda key, shape: 1.0, noise=0.02, seed=seed)
    assert race("default", names(20), SHAPES, stand).best == "default"


def test_a_challenger_that_loses_a_shape_by_more_than_noise_does_not_replace_the_default():
    def ms(key: str, shape: Shape) -> float:
        return 1.0 if key == "default" else 1.06 if shape == SHAPES[2] else 0.8

    assert race("default", names(4), SHAPES, Stand(ms)).best == "default"


def test_without_challengers_nothing_is_timed():
    stand = Stand(lambda key, shape: 1.0)
    assert race("default", [], SHAPES, stand).best == "default"
    assert stand.timings == num_timings(1, 3) == 0
