"""Successive halving of the candidates of one problem, and the rule by which a challenger beats the default.

Owns the search. Pure: whoever calls gives a function that times. Must not know what a candidate is.

Each round times those still in the race on more shapes and keeps the better half; the default stays in to the end,
because every figure is a ratio to it, taken in the same minutes. Then the default and the best challenger are timed
again on every shape, alternating, and the challenger must win by more than noise in the mean and lose nowhere by more.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from prism_gen.tuning_table import Shape

RUNS = 7  # timed runs of one candidate on one shape, as for any figure (docs/performance.md)
FINAL_LAPS = 3  # of the final, RUNS each: noise between minutes shows
MIN_GAIN = 0.005  # of the mean, below which a win is not worth a schedule of its own
MIN_NOISE = 0.01  # of one shape: medians of 21 runs on an idle H200 differ by half of it


# (stage, shape, keys, runs) -> milliseconds of every run by key, runs interleaved. The stage is for the record.
Time = Callable[[str, Shape, Sequence[str], int], dict[str, tuple[float, ...]]]


class Outcome(NamedTuple):
    """The winner, and how many times faster than the default it is, in the mean and by shape's label."""

    best: str
    speedup: float
    speedups: dict[str, float]


def num_rounds(num_candidates: int) -> int:
    """Rounds until one challenger is left beside the default."""
    return max(0, math.ceil(math.log2(max(1, num_candidates - 1))))


def num_timings(num_candidates: int, num_shapes: int) -> int:
    """How often one candidate is timed on one shape in a whole race: what the time left is reckoned by."""
    total, alive = 0, num_candidates - 1
    if alive < 1:
        return 0
    seen = 0
    rounds = num_rounds(num_candidates)
    for i in range(rounds):
        upto = _shapes_upto(i, rounds, num_shapes)
        total += (upto - seen) * (alive + 1)
        seen, alive = upto, math.ceil(alive / 2)
    return total + FINAL_LAPS * num_shapes * 2


def race(default: str, challengers: Sequence[str], shapes: Sequence[Shape], time: Time) -> Outcome:
    """The fastest of the default and its challengers. shapes: in the order they are taken up, the telling one first."""
    alive = list(challengers)
    if not alive:
        return Outcome(default, 1.0, {shape.label: 1.0 for shape in shapes})
    ratios: dict[str, list[float]] = {key: [] for key in alive}
    seen, rounds = 0, num_rounds(len(alive) + 1)
    for i in range(rounds):
        upto = _shapes_upto(i, rounds, len(shapes))
        for shape in shapes[seen:upto]:
            taken = time(f"round {i + 1}", shape, [default, *alive], RUNS)
            base = statistics.median(taken[default])
            for key in alive:
                ratios[key].append(statistics.median(taken[key]) / base)
        seen = upto
        alive = sorted(alive, key=lambda key: statistics.geometric_mean(ratios[key]))[: math.ceil(len(alive) / 2)]
    return _final(default, alive[0], shapes, time)


def _shapes_upto(index: int, rounds: int, num_shapes: int) -> int:
    """How many of the shapes round `index` of `rounds` has seen at its end: one at first, all at last."""
    return max(1, round(num_shapes * (index + 1) / rounds))


def _final(default: str, challenger: str, shapes: Sequence[Shape], time: Time) -> Outcome:
    taken: dict[str, dict[str, list[float]]] = {shape.label: {default: [], challenger: []} for shape in shapes}
    for lap in range(FINAL_LAPS):
        for shape in shapes:
            order = [default, challenger] if lap % 2 == 0 else [challenger, default]
            for key, ms in time(f"final {lap + 1}", shape, order, RUNS).items():
                taken[shape.label][key].extend(ms)
    speedups, noises = {}, []
    for label, runs in taken.items():
        speedups[label] = statistics.median(runs[default]) / statistics.median(runs[challenger])
        noises.append(max(MIN_NOISE, *(_spread(runs[key]) for key in (default, challenger))))
    mean = statistics.geometric_mean(speedups.values())
    needed = 1 + max(MIN_GAIN, statistics.mean(noises) / math.sqrt(len(noises)))
    loses_nowhere = all(speedup >= 1 - noise for speedup, noise in zip(speedups.values(), noises, strict=True))
    if mean >= needed and loses_nowhere:
        return Outcome(challenger, mean, speedups)
    return Outcome(default, 1.0, dict.fromkeys(speedups, 1.0))


def _spread(ms: Sequence[float]) -> float:
    """Distance of the quartiles over the median: an outlier does not count, a wandering clock does."""
    low, _, high = statistics.quantiles(ms, n=4)
    return (high - low) / statistics.median(ms)
