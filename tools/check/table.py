"""The end of a run: a short table of the figures, and every failure, last.

Owns how records are read back and printed. Must not judge: a record says itself whether it is ok.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Record = dict[str, Any]
# Columns of a figure: the first key that a record holds is shown.
MAIN_FIGURES = ("tflops", "sustained_tflops", "total_ms", "tbps", "skipped")
ATTEND_FIGURES = ("ms", "spread", "rested_tflops", "of_ceiling", "host_us", "of_copy", "times_rotation")
POWER_FIGURES = ("watts", "joules_per_tflop", "clock_mhz")
SELECT_FIGURES = ("pool_ms", "select_ms", "subpool_ms", "score_ms", "graph_ms", "repeated_ms", "floor_ms", "density")
MAX_PROBLEM_CHARS = 600


def read_records(path: Path) -> list[Record]:
    """Every record of a results file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def print_table(records: list[Record]) -> None:
    """One line a figure: what, case, its main figure, the others."""
    for record in records:
        main = next((f"{record[key]} {key}" for key in MAIN_FIGURES if key in record), "")
        if not main:
            continue
        side = ", ".join(
            f"{key} {record[key]}" for key in ATTEND_FIGURES + POWER_FIGURES + SELECT_FIGURES if key in record
        )
        print(f"{record['what']:<34} {record['case']:<42} {main:<18} {side}", flush=True)


def print_failures(records: list[Record]) -> int:
    """Prints the counts and then every failure; returns how many failed."""
    failures = [record for record in records if record.get("ok") is False]
    passed = sum(record.get("ok") is True for record in records)
    print(f"{passed} passed, {len(failures)} failed", flush=True)
    for record in failures:
        problems = "; ".join(record.get("problems", []))[:MAX_PROBLEM_CHARS]
        print(f"FAILED {record['section']} {record['what']} {record['case']}: {problems}", flush=True)
    return len(failures)
