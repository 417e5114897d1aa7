"""The journal of a tuning run: every verdict and timing as it is made, so that a run goes on where it was interrupted.

Owns its lines and their file. Must not decide anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from prism_gen.crossover import Crossover
from prism_gen.spec import Struct
from prism_gen.tuning_table import Outcome, Shape


class Machine(Struct, frozen=True, kw_only=True, tag="machine"):
    """Where the lines after this one were taken."""

    gpu: str
    driver: str
    cuda: str


class Begun(Struct, frozen=True, kw_only=True, tag="begun"):
    """The candidate under way: the last one of a process that died is what it died of."""

    unit: str
    key: str


class Judged(Struct, frozen=True, kw_only=True, tag="judged"):
    """A verdict on one candidate."""

    unit: str
    key: str
    outcome: Outcome
    reason: str = ""


class Timed(Struct, frozen=True, kw_only=True, tag="timed"):
    """One stage of a race on one shape: every run of every key, milliseconds."""

    unit: str
    stage: str
    shape: Shape
    ms: dict[str, tuple[float, ...]]


class Crossed(Struct, frozen=True, kw_only=True, tag="crossed"):
    """Where a unit's best schedule crosses dense attention."""

    unit: str
    crossover: Crossover


class Ended(Struct, frozen=True, kw_only=True, tag="ended"):
    """A unit whose race is over. complete: False where the budget ended it."""

    unit: str
    complete: bool


Line = Machine | Begun | Judged | Timed | Crossed | Ended
_DECODER = msgspec.json.Decoder(Line)


class Journal:
    """One file of lines, appended to. Lines from another GPU are kept in the file and left out of what is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, line: Line) -> None:
        """Appends one line, whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")

    @staticmethod
    def decode(data: bytes) -> Line | None:
        """One line; None where a process was killed while it wrote it."""
        try:
            line: Line = _DECODER.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        return line

    def lines(self) -> Iterator[Line]:
        """Every line that can be read."""
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            for data in file:
                if (line := self.decode(data)) is not None:
                    yield line

    def of_machine(self, machine: Machine) -> tuple[list[Line], int]:
        """(the lines taken on this machine, how many were taken on another)."""
        found: list[Line] = []
        foreign, current = 0, machine
        for line in self.lines():
            if isinstance(line, Machine):
                current = line
            elif current == machine:
                found.append(line)
            else:
                foreign += 1
        return found, foreign
