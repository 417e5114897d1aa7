"""Builds that race on one cache, and builds that are killed: the bundle is the old one or the new one, never torn."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prism_gen.files import sha256
from prism_gen.manifest import MANIFEST_NAME, read_manifest

DRIVER = Path(__file__).parents[1] / "build_driver.py"


@pytest.fixture
def start(fake, templates, tmp_path, monkeypatch):
    """Start a build in a process group of its own."""
    monkeypatch.setenv("CUDA_HOME", str(fake.folder.parent))
    monkeypatch.setenv("PYTHONPATH", str(DRIVER.parents[1]))

    def run() -> subprocess.Popen[bytes]:
        arguments = (DRIVER, tmp_path / "cache", tmp_path / "bundle", templates, fake.folder)
        command = [sys.executable, *map(str, arguments)]
        return subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)

    return run


def _set_version(templates: Path, version: int) -> None:
    """Give every kernel another source, by one line of a shared header and of each template."""
    for template in templates.glob("*/*.cu.jinja"):
        text = re.sub(r"// version \d+\n", "", template.read_text())
        template.write_text(text + f"// version {version}\n")


def _whole_version(bundle: Path) -> int:
    """The one version that every file of the bundle is of. Fails where a file is missing, torn, or of another."""
    manifest = read_manifest(bundle)
    for entry in manifest.kernels:
        assert sha256(bundle / entry.file) == entry.digest
        assert (bundle / entry.log).read_text().startswith("$ cd")
    sources = [(bundle / entry.source).read_text() for entry in manifest.kernels]
    versions = {int(re.search(r"// version (\d+)", source)[1]) for source in sources}
    assert len(versions) == 1
    return versions.pop()


def test_eight_processes_compile_each_kernel_once(start, fake, templates, tmp_path):
    _set_version(templates, 1)
    fake.set(nap_s=0.2)
    processes = [start() for _ in range(8)]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, errors
    compiled = {name: times for name, times in fake.calls().items() if name != "dryrun"}
    assert len(compiled) == 4
    assert set(compiled.values()) == {1}
    assert _whole_version(tmp_path / "bundle") == 1


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [True, False], ids=["with its compilers", "alone"])
def test_killed_at_any_moment_leaves_a_whole_bundle(start, fake, templates, tmp_path, whole_group):
    _set_version(templates, 0)
    started = time.monotonic()
    assert start().wait(timeout=60) == 0
    fake.set(nap_s=0.03)
    duration_s = time.monotonic() - started + 3 * 0.03
    moments = random.Random(7)
    killed = 0
    for version in range(1, 16):
        before = _whole_version(tmp_path / "bundle")
        _set_version(templates, version)
        process = start()
        time.sleep(moments.uniform(0.2, 1.0) * duration_s)
        (os.killpg if whole_group else os.kill)(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
        killed += process.returncode == -signal.SIGKILL
        assert _whole_version(tmp_path / "bundle") in (before, version)
    assert killed > 5, "the builds were over before they could be killed"
    _set_version(templates, 99)
    assert start().wait(timeout=60) == 0
    assert _whole_version(tmp_path / "bundle") == 99
    bundle = tmp_path / "bundle"
    named = {path for entry in read_manifest(bundle).kernels for path in (entry.file, entry.source, entry.log)}
    present = {str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file()}
    assert present == named | {MANIFEST_NAME, ".lock"}
