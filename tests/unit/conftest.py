"""What the unit tests share: the command line as a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def prism(fake, tmp_path, monkeypatch):
    """Run `python -m prism_gen` in an empty folder with the pretended compiler."""
    monkeypatch.setenv("CUDA_HOME", str(fake.folder.parent))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("PRISM_GEN_CACHE", raising=False)

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "prism_gen", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)

    return run
