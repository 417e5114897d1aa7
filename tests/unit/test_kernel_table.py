"""docs/kernels.md is of today's rows and templates, and reads as tools/kernel_table.py writes it.

Needs no compiler: figures that were written for today's code are taken as they stand. One that was edited by hand is
found by tests/compile/test_compile.py if it compiles that row, else by `tools/kernel_table.py --check` alone.
"""

from __future__ import annotations

from prism_gen.schedules import ROWS
from tools.kernel_table import TABLE, digest, known_figures, page, representative


def test_every_row_has_a_kernel_of_its_own():
    specs = [representative(row) for row in ROWS]
    assert len(set(specs)) == len(ROWS)
    assert all(spec.schedule == row.schedule for spec, row in zip(specs, ROWS, strict=True))


def test_the_table_is_of_todays_code():
    committed = TABLE.read_text(encoding="utf-8")
    known = known_figures(committed)
    changed = [spec.name for spec in map(representative, ROWS) if digest(spec) not in known]
    assert not changed, "python tools/kernel_table.py, and read the diff"
    compiled_with = next(line for line in committed.splitlines() if line.startswith("Compiled with"))
    assert committed == page(compiled_with, known), "python tools/kernel_table.py, and read the diff"
