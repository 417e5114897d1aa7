"""Rendered sources, whole: a change of a template, schedule or band shows as a readable diff.

After an intended change: python -m tools.update_golden
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.update_golden import golden_sources

GOLDEN = Path(__file__).parent
SOURCES = golden_sources()


def test_every_golden_file_has_a_kernel():
    assert {path.name for path in GOLDEN.glob("*.cu")} == set(SOURCES)


@pytest.mark.parametrize("name", SOURCES)
def test_source_is_the_golden_one(name):
    assert SOURCES[name] == (GOLDEN / name).read_text(encoding="utf-8"), "intended? python -m tools.update_golden"
