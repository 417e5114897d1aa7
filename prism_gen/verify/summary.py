"""Records of an examination -> one row a kernel, and JUnit's XML.

Owns what a row counts and what passes. Must not print.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prism_gen.files import write_atomic
from prism_gen.verify.job import BEGIN, END, OPEN
from prism_gen.verify.report import Aspect

Record = dict[str, Any]
NOT_EXAMINED = "no check for this family of kernels"


@dataclass
class Row:
    """What is known of one kernel or layer.

    aspects: name -> (cases that looked at it, of them failed). share_of_limit: the largest error over what is allowed.
    ties: rows of block lists that differ from float64's and lie within rounding of a cut-off; rows: of all compared.
    """

    name: str
    cases: int = 0
    failed: int = 0
    aspects: dict[str, tuple[int, int]] = field(default_factory=dict)
    share_of_limit: float | None = None
    ties: int | None = None
    rows: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Examined, and nothing failed."""
        return self.failed == 0 and self.cases > 0

    def cell(self, aspect: Aspect) -> str:
        """ "ok", "2 of 9" where two of nine cases failed, or "-" where no case looks at this aspect."""
        looked, failed = self.aspects.get(aspect, (0, 0))
        return f"{failed} of {looked}" if failed else "ok" if looked else "-"

    def add(self, record: Record) -> None:
        """Counts one judged record."""
        self.cases += 1
        if not record["ok"]:
            self.failed += 1
            self.problems += [f"{record['case']}: {problem}" for problem in record.get("problems", ())]
        for aspect, held in record.get("aspects", {}).items():
            looked, failed = self.aspects.get(aspect, (0, 0))
            self.aspects[aspect] = (looked + 1, failed + (not held))
        for key in ("share_of_limit", "spot_share_of_limit"):
            if isinstance(record.get(key), float):
                self.share_of_limit = max(record[key], self.share_of_limit or 0.0)
        if "unexplained_rows" in record:  # of the rules whose cut-off the judge knows
            self.ties = (self.ties or 0) + record["float64_differing_rows"] - record["unexplained_rows"]
            self.rows += record.get("rows", 0)


def summarize(records: Sequence[Record]) -> list[Row]:
    """One row for each thing examined, in the order they were begun."""
    rows: dict[str, Row] = {}
    current = ""
    for record in records:
        if record["case"] == BEGIN:
            current = record["what"]
            rows.setdefault(current, Row(current))
        elif record["case"] == END:
            rows[current].seconds = record["seconds"]
        elif record["case"] == OPEN and record["ok"]:
            if not record["trials"]:
                rows[current].failed += 1
                rows[current].problems.append(NOT_EXAMINED)
        elif record["ok"] is not None:
            rows.setdefault(current or record["what"], Row(current or record["what"])).add(record)
    return list(rows.values())


def write_junit(path: Path, rows: Sequence[Row], records: Sequence[Record]) -> None:
    """One test suite a kernel, one test case a case; the form that CI services read."""
    root = ET.Element("testsuites", name="prism_gen verify")
    suites: dict[str, ET.Element] = {}
    for row in rows:
        suites[row.name] = ET.SubElement(
            root, "testsuite", name=row.name, tests=str(row.cases), failures=str(row.failed), time=str(row.seconds)
        )
        if row.cases == 0:
            case = ET.SubElement(suites[row.name], "testcase", classname=row.name, name="examined")
            ET.SubElement(case, "failure", message=row.problems[0] if row.problems else NOT_EXAMINED)
    current = ""
    for record in records:
        if record["case"] == BEGIN:
            current = record["what"]
        if record["ok"] is None:
            continue
        suite = suites[current or record["what"]]
        case = ET.SubElement(suite, "testcase", classname=f"verify.{record['what']}", name=record["case"])
        if not record["ok"]:
            problems = record.get("problems", ["failed"])
            ET.SubElement(case, "failure", message=problems[0]).text = "\n".join(problems)
    ET.indent(root)
    write_atomic(path, ET.tostring(root, encoding="utf-8", xml_declaration=True))
