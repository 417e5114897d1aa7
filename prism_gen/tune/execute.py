"""Units run one after another in a process of their own, which may die: the next one goes on from the journal.

Owns the local executor, and what a death means. Must not judge or time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prism_gen.errors import DeviceError
from prism_gen.tune.journal import Ended, Journal, Judged, Line, Machine
from prism_gen.tune.unit import Memory, Stand, Unit, tune_unit
from prism_gen.verify.watch import GrowingFile, start_worker, watch

MakeStand = Callable[[Path | None], Stand]  # of the bundle of candidates


@dataclass(frozen=True)
class Plan:
    """What an executor is given. deadline: time.time() at which the budget ends. stall_s: silence that is a hang."""

    units: tuple[Unit, ...]
    make_stand: MakeStand
    bundle: Path | None
    journal: Path
    machine: Machine
    deadline: float
    stall_s: float

    def spent(self) -> bool:
        """Whether the budget is over."""
        return time.time() >= self.deadline


def run_local(plan: Plan, on_line: Callable[[Line], None]) -> None:
    """Every unit of the plan. Raises: DeviceError where the process dies before it has done anything."""
    journal = Journal(plan.journal)
    file = GrowingFile(plan.journal, from_end=True)
    ended: set[str] = set()

    def moved() -> bool:
        lines = [journal.decode(data) for data in file.new()]
        for line in lines:
            if isinstance(line, Ended):
                ended.add(line.unit)
            if line is not None:
                on_line(line)
        return bool(lines)

    while left := [unit for unit in plan.units if unit.name not in ended]:
        before = plan.journal.stat().st_size
        process = start_worker(_work, (plan, left))
        hung = watch(process, moved, timeout_s=plan.stall_s)
        if process.exitcode == 0 and not hung:
            return
        how = f"stood still for {plan.stall_s:g} s" if hung else f"ended with status {process.exitcode}"
        if plan.journal.stat().st_size == before:
            raise DeviceError(f"the tuning process {how} before its first step", fix="its last words are above")
        journal.add(after_death(left[0], journal.of_machine(plan.machine)[0], how))
        moved()


def _work(plan: Plan, units: Sequence[Unit]) -> None:
    journal, stand = Journal(plan.journal), plan.make_stand(plan.bundle)
    for unit in units:
        memory = Memory(unit, journal.of_machine(plan.machine)[0])
        tune_unit(unit, stand, memory, journal.add, plan.spent)


def after_death(unit: Unit, lines: Sequence[Line], how: str) -> Line:
    """What the journal must hold after a process died in `unit`: the candidate it died of, or else the unit's end."""
    begun = Memory(unit, lines).begun
    if begun:
        return Judged(unit=unit.name, key=begun, outcome="crashed", reason=f"its process {how}")
    return Ended(unit=unit.name, complete=False)
