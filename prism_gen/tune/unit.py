"""One unit of tuning: a problem, its candidates, their verdicts, their race and, for attend, the crossover with dense.

Owns the order of these, and how what a journal holds already is not done again. Must not know a GPU: a Stand does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from prism_gen.crossover import Crossover
from prism_gen.spec import KernelSpec
from prism_gen.tune.journal import Begun, Crossed, Ended, Judged, Line, Timed
from prism_gen.tune.race import Outcome as RaceOutcome
from prism_gen.tune.race import Time, num_timings, race
from prism_gen.tuning_table import Candidate, Measured, Shape, TunedKernel


@dataclass(frozen=True)
class Unit:
    """A default and its candidates, the default first. refused: key -> why it could not be built."""

    default: KernelSpec
    candidates: tuple[KernelSpec, ...]
    templates: str
    shapes: tuple[Shape, ...]
    heads: tuple[int, int]
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Identity of the unit in a journal: what is raced, from which sources, on what."""
        facts = f"{self.default.key} {self.templates} {self.heads} {[shape.label for shape in self.shapes]}"
        return f"{self.default.name}.{hashlib.sha256(facts.encode()).hexdigest()[:8]}"

    @property
    def steps(self) -> int:
        """Verdicts and timings of a whole race, for a bar."""
        tried = len(self.candidates) - len(self.refused)
        return tried + num_timings(tried, len(self.shapes))


class Stand(Protocol):
    """Where candidates are judged and timed: a GPU with a bundle of them, or a simulation."""

    def problems(self, spec: KernelSpec) -> list[str]:
        """What is wrong with a candidate's answers; empty if it may be timed."""
        ...

    def time(
        self, specs: Sequence[KernelSpec], shape: Shape, heads: tuple[int, int], runs: int
    ) -> dict[str, tuple[float, ...]]:
        """Milliseconds of every run by key, runs interleaved."""
        ...

    def crossover(self, spec: KernelSpec, seqlens: Sequence[int], heads: tuple[int, int]) -> Crossover | None:
        """Where an attend kernel crosses dense attention; None for a family that does not attend."""
        ...


class BudgetSpentError(Exception):
    """The time that was given is over; what was measured stays."""


Record = Callable[[Line], None]
Spent = Callable[[], bool]


class Memory:
    """What a journal knows of one unit."""

    def __init__(self, unit: Unit, lines: Sequence[Line]) -> None:
        mine = [line for line in lines if getattr(line, "unit", "") == unit.name]
        self.judged = {line.key: line for line in mine if isinstance(line, Judged)}
        self.timed = {(line.stage, line.shape): line for line in mine if isinstance(line, Timed)}
        self.crossover = next((line.crossover for line in mine if isinstance(line, Crossed)), None)
        self.ended = any(isinstance(line, Ended) and line.complete for line in mine)
        # Of a process that died: the candidate it was judging. Any other line since shows that it went on.
        last = mine[-1] if mine else None
        self.begun = last.key if isinstance(last, Begun) else ""


def tune_unit(unit: Unit, stand: Stand, memory: Memory, record: Record, spent: Spent) -> None:
    """Judges, races and crosses what the memory does not hold; every step is recorded as it ends.

    spent: whether the budget is over; asked between steps.
    """
    if memory.ended:
        return
    complete = True
    try:
        right = _judge(unit, stand, memory, record, spent)
        outcome = _race(unit, right, _timer(unit, stand, memory, record, spent))
        if memory.crossover is None:
            seqlens = sorted({shape.seqlen for shape in unit.shapes})
            best = next(spec for spec in unit.candidates if spec.key == outcome.best)
            crossover = stand.crossover(best, seqlens, unit.heads)
            if crossover is not None:
                record(Crossed(unit=unit.name, crossover=crossover))
    except BudgetSpentError:
        complete = False
    record(Ended(unit=unit.name, complete=complete))


def _judge(unit: Unit, stand: Stand, memory: Memory, record: Record, spent: Spent) -> list[str]:
    """The keys that are right, the default first where it is. Raises: BudgetSpentError."""
    right = []
    for spec in unit.candidates:
        line = memory.judged.get(spec.key)
        if line is None:
            if spent():
                raise BudgetSpentError
            line = _verdict(unit, spec, stand, record)
            record(line)
        if line.outcome == "right":
            right.append(spec.key)
    return right


def _verdict(unit: Unit, spec: KernelSpec, stand: Stand, record: Record) -> Judged:
    if spec.key in unit.refused:
        return Judged(unit=unit.name, key=spec.key, outcome="refused", reason=unit.refused[spec.key])
    record(Begun(unit=unit.name, key=spec.key))
    problems = stand.problems(spec)
    if problems:
        return Judged(unit=unit.name, key=spec.key, outcome="wrong", reason="; ".join(problems))
    return Judged(unit=unit.name, key=spec.key, outcome="right")


def _timer(unit: Unit, stand: Stand, memory: Memory, record: Record, spent: Spent) -> Time:
    specs = {spec.key: spec for spec in unit.candidates}

    def time(stage: str, shape: Shape, keys: Sequence[str], runs: int) -> dict[str, tuple[float, ...]]:
        known = memory.timed.get((stage, shape))
        if known is None or not set(keys) <= known.ms.keys():
            if spent():
                raise BudgetSpentError
            ms = stand.time([specs[key] for key in keys], shape, unit.heads, runs)
            known = Timed(unit=unit.name, stage=stage, shape=shape, ms=ms)
            record(known)
        return {key: known.ms[key] for key in keys}

    return time


def _race(unit: Unit, right: list[str], time: Time) -> RaceOutcome:
    if unit.default.key not in right:
        return RaceOutcome(unit.default.key, 1.0, {})
    return race(unit.default.key, [key for key in right if key != unit.default.key], unit.shapes, time)


def tuned_kernel(unit: Unit, lines: Sequence[Line]) -> TunedKernel | None:
    """The table's row from what a journal holds; None where the unit has not ended.

    The race is run again on the recorded timings: it depends on nothing else.
    """
    memory = Memory(unit, lines)
    ended = [line for line in lines if isinstance(line, Ended) and line.unit == unit.name]
    if not ended:
        return None
    outcome, complete = RaceOutcome(unit.default.key, 1.0, {}), ended[-1].complete
    if complete:
        right = [key for key, line in memory.judged.items() if line.outcome == "right"]
        ordered = [spec.key for spec in unit.candidates if spec.key in right]
        outcome = _race(unit, ordered, lambda stage, shape, keys, runs: dict(memory.timed[stage, shape].ms))
    return TunedKernel(
        family=unit.default.family,
        arch=unit.default.arch,
        problem=unit.default.problem,
        templates=unit.templates,
        default=unit.default.key,
        best=outcome.best,
        speedup=round(outcome.speedup, 4),
        speedups={label: round(value, 4) for label, value in outcome.speedups.items()},
        complete=complete,
        candidates=tuple(_candidate(spec, memory) for spec in unit.candidates),
    )


def _candidate(spec: KernelSpec, memory: Memory) -> Candidate:
    line = memory.judged.get(spec.key)
    measured = [
        Measured(stage=timed.stage, shape=timed.shape, ms=timed.ms[spec.key])
        for timed in memory.timed.values()
        if spec.key in timed.ms
    ]
    return Candidate(
        schedule=spec.schedule,
        key=spec.key,
        outcome=line.outcome if line else "refused",
        reason=line.reason if line else "the budget ended before it was judged",
        measured=tuple(measured),
    )
