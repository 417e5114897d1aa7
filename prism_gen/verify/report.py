"""Findings of one case, the JSON lines they become, and what is said while a section runs.

Owns the records. Must not know kernels.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TextIO

if TYPE_CHECKING:
    import torch

# What a requirement is about: the answer itself, dense attention where everything is selected, the same bits again,
# nothing touched outside the outputs, or a cut-off that rounding must explain.
Aspect = Literal["answer", "dense", "repeat", "bounds", "ties"]
MAX_ERROR_CHARS = 400  # of an exception's text in a record


def say(line: str) -> None:
    """One line to stdout, flushed: whoever waits for a kernel sees which one it is."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def emit(record: dict[str, Any], *, out: TextIO | None = None, echo: bool = True) -> None:
    """One JSON line to stdout (if `echo`) and to `out`, each flushed. NaN and infinities are written as strings."""
    clean = {k: repr(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    line = json.dumps(clean)
    if echo:
        say(line)
    if out is not None:
        out.write(line + "\n")
        out.flush()


class Findings:
    """What one case showed: figures, and the requirements that did not hold."""

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}
        self.problems: list[str] = []
        self.aspects: dict[Aspect, bool] = {}

    def require(self, condition: bool, problem: str, aspect: Aspect = "answer") -> None:
        """Notes `problem` unless the condition holds, and whether this aspect of the case holds so far."""
        self.aspects[aspect] = self.aspects.get(aspect, True) and condition
        if not condition:
            self.problems.append(problem)


# How CUDA says that a context is beyond use, in torch's words and in the kernels' own.
LOST = ("CUDA error", "CUDA driver error", "illegal memory access", "unspecified launch failure", "misaligned address")


def current_path(out: Path) -> Path:
    """The file beside `out` that names the case being run, for whoever finds the process hung or dead."""
    return out.with_suffix(".current")


def current_case(out: Path) -> str:
    """The case that the latest worker on `out` began last."""
    path = current_path(out)
    return path.read_text() if path.exists() else "no case yet"


class DeviceLostError(RuntimeError):
    """The CUDA context is unusable: every later case of this process would fail with the same error."""


class Trial(NamedTuple):
    """One case of one kernel: how records call them, and the check itself."""

    what: str
    case: str
    check: Callable[[], Findings]


class Report:
    """Writes one JSON line per case and prints one per group of cases; counts the records and the failures.

    path: appended to. verbose: prints every record, not only failures and figures. quiet: prints none.
    """

    def __init__(
        self, section: str, path: Path, device: torch.device, *, verbose: bool = False, quiet: bool = False
    ) -> None:
        self.section = section
        self.device = device
        self.failed = 0
        self.written = 0
        self._path = path
        current_path(path).unlink(missing_ok=True)
        self._verbose, self._quiet = verbose, quiet

    def add(self, what: str, case: str, *, ok: bool | None = None, show: bool = False, **figures: Any) -> None:
        """One record. ok: None for a figure that is not judged. show: print it too; failures are always printed."""
        record = {"section": self.section, "what": what, "case": case, "ok": ok, **figures}
        self.failed += ok is False
        self.written += 1
        with self._path.open("a") as out:
            emit(record, out=out, echo=not self._quiet and (show or self._verbose or ok is False))

    def case(self, what: str, case: str, check: Callable[[], Findings], *, show: bool = False) -> Findings:
        """Runs one check; an exception is a failure of this case alone, unless the device is lost.

        Raises: DeviceLostError after a CUDA fault.
        """
        findings = Findings()
        current_path(self._path).write_text(f"{self.section} {what} {case}")
        try:
            findings = check()
            if self.device.type == "cuda":
                import torch  # noqa: PLC0415 whoever only reads records needs none

                torch.cuda.synchronize(self.device)
        except Exception as error:  # every kind of failure of a case is a finding, and the next case must still run
            findings.require(False, f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARS])
        if findings.aspects:
            findings.figures["aspects"] = findings.aspects
        problems = {"problems": findings.problems} if findings.problems else {}
        self.add(what, case, ok=not findings.problems, show=show, **findings.figures, **problems)
        if any(sign in text for text in findings.problems for sign in LOST):
            raise DeviceLostError(f"{what} {case}: {findings.problems[0]}")
        return findings


class Group:
    """Progress of the cases of one kernel: counts them and prints one line at the end."""

    def __init__(self, report: Report, what: str) -> None:
        self._report, self._what = report, what
        self._start, self._before = time.monotonic(), report.failed
        self._cases = 0
        self._worst: dict[str, float] = {}

    def case(self, name: str, check: Callable[[], Findings]) -> None:
        """Runs one case and keeps the largest value of each of its figures."""
        findings = self._report.case(self._what, name, check)
        self._cases += 1
        for key, value in findings.figures.items():
            if isinstance(value, int | float):
                self._worst[key] = max(value, self._worst.get(key, value))

    def run(self, trials: Iterable[Trial]) -> None:
        """Every trial, and the line at the end."""
        for trial in trials:
            self.case(trial.case, trial.check)
        self.close()

    def close(self) -> None:
        """Prints the group's line."""
        failed = self._report.failed - self._before
        worst = ", ".join(f"{key} {value:.3g}" for key, value in sorted(self._worst.items()))
        seconds = time.monotonic() - self._start
        verdict = f"{failed} FAILED of {self._cases}" if failed else f"{self._cases} ok"
        say(f"  {self._report.section} {self._what}: {verdict}; worst {worst}; {seconds:.1f} s")
