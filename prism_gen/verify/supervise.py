"""Workers one after another until a bundle is examined: a hang or a crash costs one kernel, and is said.

Owns the watchdog. Must not examine anything itself (worker.py does), so that no kernel can take this process with it.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from prism_gen.verify.job import BEGIN, END, LOST_STATUS, SECTION, Job
from prism_gen.verify.report import current_case, current_path

POLL_S = 0.05  # between looks at the records; a case takes milliseconds, and the first one seconds

Record = dict[str, Any]


def _work(job: Job) -> None:
    from prism_gen.verify.worker import work  # noqa: PLC0415 imports torch, which only the worker needs

    work(job)


class _Lines:
    """The complete lines of a growing file, each once."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def new(self) -> Iterator[Record]:
        """Records written since the last call."""
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                yield json.loads(line)


def examine(
    job: Job,
    *,
    case_timeout_s: float,
    on_record: Callable[[Record], None],
    worker: Callable[[Job], None] = _work,
) -> list[Record]:
    """Every record of the job, those of crashes among them; on_record is given each as it comes.

    case_timeout_s: after which a case without an end is a hang. worker: what the processes run, importable by name.
    """
    job.records.parent.mkdir(parents=True, exist_ok=True)
    job.records.write_text("")
    watch = _Watch(job, case_timeout_s, on_record)
    while True:
        process = multiprocessing.get_context("spawn").Process(
            target=worker, args=(replace(job, done=frozenset(watch.done)),), daemon=True
        )
        process.start()
        subject, hung = watch.until_end(process)
        if process.exitcode == 0 and not hung:
            current_path(job.records).unlink(missing_ok=True)
            return watch.records
        if hung or process.exitcode != LOST_STATUS:
            what = f"hung for {case_timeout_s:g} s and was killed" if hung else f"ended with status {process.exitcode}"
            watch.add_crash(subject, f"the process {what} in or after {current_case(job.records)}")
        if not subject:  # it died before it began anything, and so would the next
            return watch.records
        watch.done.add(subject)


class _Watch:
    """What has been seen of the workers so far. done: subjects that the next worker leaves out."""

    def __init__(self, job: Job, case_timeout_s: float, on_record: Callable[[Record], None]) -> None:
        self.records: list[Record] = []
        self.done: set[str] = set()
        self._path, self._timeout_s, self._on_record = job.records, case_timeout_s, on_record
        self._lines = _Lines(job.records)

    def until_end(self, process: BaseProcess) -> tuple[str, bool]:
        """(what the worker was in when it ended, "" if nothing; whether it hung and was killed)."""
        subject, last, hung = "", time.monotonic(), False
        while True:
            ended = process.exitcode is not None  # asked first, so that nothing it wrote is missed
            for record in self._lines.new():
                last = time.monotonic()
                if record["case"] == BEGIN:
                    subject = record["what"]
                elif record["case"] == END:
                    self.done.add(subject)
                    subject = ""
                self._add(record)
            if ended:
                return subject, hung
            if time.monotonic() - last > self._timeout_s:
                hung = True
                process.kill()
            process.join(POLL_S)

    def add_crash(self, subject: str, problem: str) -> None:
        """The failing record of a worker that left none, into the file as well."""
        with self._path.open("a") as file:
            file.write(json.dumps(_crash(subject, problem)) + "\n")
        for record in self._lines.new():
            self._add(record)

    def _add(self, record: Record) -> None:
        self.records.append(record)
        self._on_record(record)


def _crash(subject: str, problem: str) -> Record:
    """The failing record of a worker that left none."""
    return {
        "section": SECTION,
        "what": subject or "worker",
        "case": "process",
        "ok": False,
        "aspects": {"answer": False},
        "problems": [problem],
    }
