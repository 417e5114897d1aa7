"""Builds that fail, are stopped, or are refused: what is said, and that the old bundle stays."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from prism_gen import build as build_module
from prism_gen import gates
from prism_gen.compile import Compiler, Event
from prism_gen.errors import BundleError, CompileError, ConfigError, RenderError
from prism_gen.files import locked, sha256, write_atomic
from prism_gen.fingerprint import make_source
from prism_gen.manifest import read_manifest
from prism_gen.specialize import specialize


@pytest.mark.parametrize("where", ["bundle/lib", "cache"])
def test_damaged_library_is_restored(run_build, make_model, tmp_path, where, tree):
    run_build(make_model())
    before = tree(tmp_path / "bundle")
    for library in (tmp_path / where).rglob("*.so"):
        library.write_bytes(b"damaged")
    manifest = run_build(make_model())
    assert len(tree(tmp_path / "bundle")) == len(before)
    for entry in manifest.kernels:
        assert sha256(tmp_path / "bundle" / entry.file) == entry.digest


def test_failed_build_keeps_the_old_bundle_and_says_where_to_look(run_build, make_model, templates, tmp_path, tree):
    run_build(make_model())
    before = tree(tmp_path / "bundle")
    with (templates / "attend" / "attend.cu.jinja").open("a") as file:
        file.write("BROKEN\n")
    with pytest.raises(CompileError) as caught:
        run_build(make_model())
    assert tree(tmp_path / "bundle") == before
    words = str(caught.value)
    assert 'error: identifier "BROKEN" is undefined' in words
    assert "nvcc failed on attend-sm90-bf16-d128-b128x128" in words
    fields = dict(line.strip().split(": ", 1) for line in words.splitlines() if line.startswith("  ") and ": " in line)
    assert "BROKEN" in Path(fields["source"]).read_text()
    assert "BROKEN" in Path(fields["log"]).read_text()
    assert "-gencode=arch=compute_90a,code=sm_90a" in fields["command"]
    assert not list((tmp_path / "cache").glob("*.tmp-*"))


def test_failure_is_not_cached(run_build, make_model, templates):
    template = templates / "pool" / "pool.cu.jinja"
    good = template.read_text()
    template.write_text(good + "BROKEN\n")
    for _ in range(2):
        with pytest.raises(CompileError):
            run_build(make_model())
    template.write_text(good)
    run_build(make_model())


def test_stale_scratch_of_a_dead_process_is_removed(run_build, make_model, tmp_path):
    stale = tmp_path / "cache" / ("0" * 64 + ".tmp-dead")
    stale.mkdir(parents=True)
    (stale / "half.so").touch()
    run_build(make_model())
    assert not stale.exists()


class _Killed(BaseException):
    """Stands for the process being killed at one point."""


@pytest.mark.parametrize("cause", ["changed header", "lost cache"])
def test_stopped_before_any_write_leaves_the_old_bundle(run_build, make_model, templates, tmp_path, monkeypatch, cause):
    """A lost cache: the same inputs are compiled again, and nvcc never gives the same bytes twice."""
    old = run_build(make_model())
    if cause == "lost cache":
        shutil.rmtree(tmp_path / "cache")
    else:
        (templates / "shared" / "common.h").write_text("// changed\n")
    writes = 3 * len(old.kernels) + 1  # library, source and log of each kernel; then the manifest
    for survived in range(writes):
        left = [survived]
        torn = tmp_path / f"stopped-{survived}"
        shutil.copytree(tmp_path / "bundle", torn)

        def write(path: Path, data: bytes, left=left) -> None:
            if left[0] == 0:
                raise _Killed
            left[0] -= 1
            write_atomic(path, data)

        monkeypatch.setattr(build_module, "write_atomic", write)
        with pytest.raises(_Killed):
            run_build(make_model(), out=torn.name)
        assert read_manifest(torn) == old
        for entry in old.kernels:
            assert sha256(torn / entry.file) == entry.digest


def test_cached_kernel_that_fails_a_new_gate_is_not_published(run_build, make_model, monkeypatch):
    run_build(make_model())
    monkeypatch.setattr(gates, "LOCAL_MEMORY_SASS", ("HGMMA",))  # as if a later version refused this instruction
    with pytest.raises(CompileError, match="1 HGMMA instructions"):
        run_build(make_model())


def test_cached_kernel_that_a_new_gate_never_measured_is_compiled_again(run_build, make_model, fake, monkeypatch):
    run_build(make_model())
    fake.reset()
    monkeypatch.setattr(gates, "LOCAL_MEMORY_SASS", (*gates.LOCAL_MEMORY_SASS, "BPT"))
    run_build(make_model())
    assert set(fake.calls().values()) == {1}


def test_cached_kernel_with_a_damaged_log_is_compiled_again(run_build, make_model, fake, tmp_path):
    run_build(make_model())
    fake.reset()
    for log in (tmp_path / "cache").glob("*/log.txt"):
        log.write_bytes(b"\xff")
    run_build(make_model())
    assert set(fake.calls().values()) == {1}


def test_build_that_is_stopped_starts_no_compiler_for_those_that_wait(fake, templates, make_model, tmp_path):
    """Ctrl-C while another process compiles one of the kernels, and so holds its lock."""
    specs = specialize(make_model(), ["sm90"])[:2]
    tools, cache = fake.toolchain(), tmp_path / "cache"
    first, second = (make_source(spec, "// source", root=templates, toolchain=tools) for spec in specs)

    def report(event: Event) -> None:
        if event.kind == "start" and event.name == first.spec.name:
            time.sleep(0.2)  # until the other waits for its lock
            raise KeyboardInterrupt

    cache.mkdir()
    with locked(cache / f"{second.digest}.lock"), pytest.raises(KeyboardInterrupt):
        Compiler(toolchain=tools, cache=cache, root=templates).compile_all([first, second], jobs=2, report=report)
    assert not fake.calls()


def test_unknown_constant_lists_those_that_exist(run_build, make_model, templates):
    (templates / "pool" / "pool.cu.jinja").write_text("{{ warp_tiles }}")
    with pytest.raises(RenderError, match=r"(?s)warp_tiles.*available: .*head_dim.*families/pool\.py"):
        run_build(make_model())


def test_folder_with_other_files_is_refused(run_build, make_model, tmp_path):
    (tmp_path / "bundle" / "lib").mkdir(parents=True)
    (tmp_path / "bundle" / "lib" / "thesis.pdf").touch()
    with pytest.raises(BundleError, match="holds other files"):
        run_build(make_model())
    assert (tmp_path / "bundle" / "lib" / "thesis.pdf").exists()


def test_folder_of_another_program_with_a_manifest_is_refused(run_build, make_model, tmp_path):
    manifest = tmp_path / "bundle" / "manifest.json"
    manifest.parent.mkdir()
    manifest.write_text('{"manifest_version": 3, "name": "a browser extension"}')
    with pytest.raises(BundleError, match="holds other files"):
        run_build(make_model())
    assert "extension" in manifest.read_text()


def test_files_of_others_in_a_bundle_are_kept(run_build, make_model, templates, tmp_path):
    old = run_build(make_model())
    notes = [tmp_path / "bundle" / folder / "notes.log" for folder in ("lib", "src", "log")]
    for path in notes:
        path.touch()
    (templates / "shared" / "common.h").write_text("// changed\n")
    run_build(make_model())
    assert all(path.exists() for path in notes)
    assert not any((tmp_path / "bundle" / entry.file).exists() for entry in old.kernels)


def test_two_models_of_one_name_are_refused(run_build, make_model):
    with pytest.raises(ConfigError, match="named 'tiny'"):
        run_build(make_model(), make_model(num_q_heads=32))
