"""What `tune` says of its progress, on a clock made up."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from prism_gen.tune.journal import Ended, Judged, Timed
from prism_gen.tune.prepare import make_units
from prism_gen.tune.progress import TuneProgress
from prism_gen.tuning_table import Shape

SHAPE = Shape(seqlen=4096)


@pytest.fixture
def unit(model):
    return make_units([model], ["sm90"], (SHAPE,), bundle=None)[0]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def progress(unit, known=(), *, terminal=False, deadline=float("inf")):
    file, clock = io.StringIO(), Clock()
    console = Console(file=file, width=200, force_terminal=terminal)
    return TuneProgress(console, [unit], known, deadline=deadline, clock=clock), clock, file


def judged(unit, index):
    return Judged(unit=unit.name, key=unit.candidates[index].key, outcome="right")


def test_time_left_is_at_the_pace_of_this_run_alone(unit):
    shown, clock, _ = progress(unit, [judged(unit, i) for i in range(5)])
    assert shown.left() == "time left unknown"
    clock.now += 3
    shown(judged(unit, 5))
    assert shown.left() == f"{3 * (unit.steps - 6) / 60:.0f} min left"
    shown(Timed(unit=unit.name, stage="round 1", shape=SHAPE, ms={spec.key: (1.0,) for spec in unit.candidates}))
    left = unit.steps - 6 - len(unit.candidates)
    assert shown.left() == f"{3 / (1 + len(unit.candidates)) * left:.0f} s left"


def test_a_budget_bounds_the_time_left(unit):
    shown, clock, _ = progress(unit, deadline=1010.0)
    clock.now += 4
    shown(judged(unit, 0))
    assert shown.left() == "6 s left"


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end(unit):
    shown, clock, file = progress(unit)
    for i in range(10):
        clock.now += 10
        shown(judged(unit, i))
    shown(Ended(unit=unit.name, complete=True))
    lines = file.getvalue().splitlines()
    assert len(lines) == 4  # three in a hundred seconds
    assert "min left" in lines[0]
    assert unit.default.name in lines[0]
    assert lines[-1] == f"{unit.default.name}: done"
    assert shown.left() == "0 s left"


def test_a_terminal_gets_a_bar_instead(unit):
    shown, clock, file = progress(unit, terminal=True)
    with shown:
        for i in range(10):
            clock.now += 10
            shown(judged(unit, i))
    assert "min left" in file.getvalue()
    assert "%" in file.getvalue()
