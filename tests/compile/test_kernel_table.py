"""Every schedule row compiled for real: what docs/kernels.md says of it is true.

Needs nvcc, no GPU. Another nvcc or CUTLASS than the table's may give other figures; then only the gates are held.
"""

from __future__ import annotations

import pytest

from prism_gen.jobs import default_jobs
from prism_gen.schedules import ROWS
from prism_gen.toolchain import find_toolchain
from tools.kernel_table import CACHE, TABLE, representative, table

pytestmark = [pytest.mark.compile, pytest.mark.slow]


def test_every_row_has_a_kernel_of_its_own():
    specs = [representative(row) for row in ROWS]
    assert len(set(specs)) == len(ROWS)
    assert all(spec.schedule == row.schedule for spec, row in zip(specs, ROWS, strict=True))


def test_the_table_is_what_the_rows_compile_to():
    compiled = table(find_toolchain(nvcc=None, cache=CACHE), jobs=default_jobs())
    committed = TABLE.read_text(encoding="utf-8")
    versions = next(line for line in committed.splitlines() if line.startswith("Compiled with"))
    if versions not in compiled:
        pytest.skip(f"another toolchain than the table's: {versions}")
    assert compiled.splitlines() == committed.splitlines(), "python tools/kernel_table.py, and read the diff"
