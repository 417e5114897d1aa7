"""How far a race is and how long it will take: a bar on a terminal, a line now and then in a log.

Owns that reckoning. Must not run anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from prism_gen.tune.journal import Crossed, Ended, Judged, Line, Timed
from prism_gen.tune.unit import Unit

LINE_EVERY_S = 30.0  # in a log, whose reader wants to know that it goes on


class TuneProgress:
    """Steps done, time left and the unit under way, from the lines of the journal as they come.

    known: lines of an earlier run, whose steps are done and took no time of this one. deadline: as in Plan.
    """

    def __init__(
        self,
        console: Console,
        units: Sequence[Unit],
        known: Sequence[Line],
        *,
        deadline: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._console, self._deadline, self._clock = console, deadline, clock
        self._left = {unit.name: unit.steps for unit in units}
        self._units = {unit.name: unit for unit in units}
        for line in known:
            self._count(line)
        self._total, self._began = sum(unit.steps for unit in units), clock()
        self._first = sum(self._left.values())
        self._last_line = self._began
        self._bar = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.description}", markup=False),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("", total=self._total, completed=self._total - self._first)

    def __enter__(self) -> TuneProgress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, line: Line) -> None:
        """Shows one line of the journal."""
        unit = self._units.get(getattr(line, "unit", ""))
        if unit is None:
            return
        self._count(line)
        words = f"{self.left()}, {unit.default.name} {_stage(line)}".rstrip()
        self._bar.update(self._task, completed=self._total - sum(self._left.values()), description=words)
        now = self._clock()
        if isinstance(line, Ended):
            self._say(f"{unit.default.name}: {'done' if line.complete else 'not finished: the default stands'}")
        elif not self._console.is_terminal and now - self._last_line >= LINE_EVERY_S:
            self._say(f"{1 - sum(self._left.values()) / max(1, self._total):.0%}, {words}")

    def left(self) -> str:
        """The time that what is left will take at the pace so far, and no more than the budget leaves."""
        steps = sum(self._left.values())
        done, now = self._first - steps, self._clock()
        if not done:
            return "time left unknown"
        seconds = min((now - self._began) / done * steps, max(0.0, self._deadline - now))
        return f"{seconds:.0f} s left" if seconds < 100 else f"{seconds / 60:.0f} min left"

    def _say(self, text: str) -> None:
        self._last_line = self._clock()
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _count(self, line: Line) -> None:
        """Takes the steps of a line off what is left of its unit; an ended unit has none."""
        name = getattr(line, "unit", "")
        if name not in self._left:
            return
        if isinstance(line, Ended):
            self._left[name] = 0
        elif isinstance(line, Judged) and line.outcome != "refused":
            self._left[name] = max(0, self._left[name] - 1)
        elif isinstance(line, Timed):
            self._left[name] = max(0, self._left[name] - len(line.ms))


def _stage(line: Line) -> str:
    if isinstance(line, Timed):
        return f"{line.stage} {line.shape.label}"
    return "crossing dense" if isinstance(line, Crossed) else "judging" if isinstance(line, Judged) else ""
