"""Workers one after another until a bundle is examined: a hang or a crash costs one kernel, and is said.

Owns the watchdog. Must not examine anything itself (worker.py does), so that no kernel can take this process with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from typing import Any

from prism_gen.verify.job import BEGIN, END, LOST_STATUS, SECTION, Job
from prism_gen.verify.report import current_case, current_path
from prism_gen.verify.watch import GrowingFile, start_worker, watch

Record = dict[str, Any]


def _work(job: Job) -> None:
    from prism_gen.verify.worker import work  # noqa: PLC0415 imports torch, which only the worker needs

    work(job)


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
        process = start_worker(worker, (replace(job, done=frozenset(watch.done)),))
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
        self._lines, self._subject = GrowingFile(job.records), ""

    def until_end(self, process: BaseProcess) -> tuple[str, bool]:
        """(what the worker was in when it ended, "" if nothing; whether it hung and was killed)."""
        self._subject = ""
        hung = watch(process, self._read, timeout_s=self._timeout_s)
        return self._subject, hung

    def _read(self) -> bool:
        """Takes what is new; whether there was anything."""
        before = len(self.records)
        for data in self._lines.new():
            record = json.loads(data)
            if record["case"] == BEGIN:
                self._subject = record["what"]
            elif record["case"] == END:
                self.done.add(self._subject)
                self._subject = ""
            self._add(record)
        return len(self.records) > before

    def add_crash(self, subject: str, problem: str) -> None:
        """The failing record of a worker that left none, into the file as well."""
        with self._path.open("a") as file:
            file.write(json.dumps(_crash(subject, problem)) + "\n")
        self._read()

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
