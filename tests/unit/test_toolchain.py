"""Finding the toolchain: the search order, what is said of each missing part, and versions without running nvcc."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from prism_gen import toolchain
from prism_gen.doctor import build_findings
from prism_gen.errors import ToolchainError
from prism_gen.toolchain import find_toolchain

GUARDED_MAIN = "sys.exit(1) if 'NVCC_APPEND_FLAGS' in os.environ else main()\n"


@pytest.fixture
def find(fake, tmp_path, monkeypatch):
    """find_toolchain on a machine whose only CUDA is the pretended one."""
    monkeypatch.setenv("CUDA_HOME", str(fake.folder.parent))
    monkeypatch.delenv("NVCC_CCBIN", raising=False)
    return lambda nvcc=None: find_toolchain(nvcc=nvcc, cache=tmp_path / "cache")


def test_everything_is_found(find, fake):
    found = find()
    assert (found.nvcc, found.cuobjdump) == (fake.folder / "nvcc", fake.folder / "cuobjdump")
    assert found.cudart_dir == fake.folder.parent / "lib"
    assert (found.cutlass_include / "cute" / "tensor.hpp").is_file()
    assert (found.tvm_ffi_include / "tvm" / "ffi" / "function.h").is_file()
    assert found.versions["nvcc"] == "13.0.88"
    assert set(found.versions) == {"nvcc", "g++", "cutlass", "tvm-ffi"}


def test_explicit_nvcc_comes_first(find, fake, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert find(fake.folder / "nvcc").nvcc == fake.folder / "nvcc"


def test_second_search_runs_no_nvcc(find, fake):
    find()
    fake.reset()
    assert find().versions["nvcc"] == "13.0.88"
    assert not fake.calls()


def test_changed_nvcc_is_asked_again(find, fake):
    find()
    fake.set(version="13.1.7")
    assert find().versions["nvcc"] == "13.1.7"


def test_changed_ptxas_asks_again(find, fake):
    find()
    fake.reset()
    (fake.folder / "ptxas").write_text("another")
    find()
    assert fake.calls() == {"dryrun": 1}


def test_damaged_version_cache_is_ignored(find, tmp_path):
    find()
    (tmp_path / "cache" / "toolchain.json").write_text('{"nvcc')
    assert find().versions["nvcc"] == "13.0.88"


@pytest.mark.parametrize("part", ["ptxas", "../nvvm/bin/cicc", "../lib/libcudart_static.a"])
def test_incomplete_nvcc_is_refused(find, fake, part):
    (fake.folder / part).unlink()
    with pytest.raises(ToolchainError, match=r"(?s)no .*fix: pip install 'prism-gen\[toolchain\]'"):
        find()


def test_missing_nvcc_says_where_it_looked_and_how_to_get_it(find, tmp_path, monkeypatch):
    monkeypatch.setattr(toolchain, "_candidates", lambda tool: iter([tmp_path / "nowhere" / tool]))
    with pytest.raises(ToolchainError, match=r"(?s)no nvcc.*nowhere/nvcc.*pip install 'prism-gen\[toolchain\]'"):
        find()


def test_nvcc_that_is_no_program_is_refused(find, tmp_path):
    (tmp_path / "nvcc").write_text("text")
    with pytest.raises(ToolchainError, match="not an executable"):
        find(tmp_path / "nvcc")


def test_nvcc_that_fails_is_quoted(find, fake):
    (fake.folder / "nvcc").write_text("#!/bin/sh\necho no license >&2\nexit 3\n")
    with pytest.raises(ToolchainError, match="exit status 3: no license"):
        find()


def test_missing_host_compiler(find, monkeypatch):
    monkeypatch.setenv("NVCC_CCBIN", "no-such-compiler")
    with pytest.raises(ToolchainError, match="apt-get install"):
        find()


@pytest.mark.parametrize(("package", "words"), [("cutlass_library", "nvidia-cutlass"), ("tvm_ffi", "apache-tvm-ffi")])
def test_missing_headers(find, monkeypatch, package, words):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else real(name))
    with pytest.raises(ToolchainError, match=rf"(?s)no headers of {words}.*pip install"):
        find()


def test_doctor_lists_every_part_and_raises_nothing(find, fake, tmp_path, monkeypatch):
    monkeypatch.setenv("NVCC_CCBIN", "no-such-compiler")
    findings = {finding.name: finding for finding in build_findings(nvcc=None, cache=tmp_path / "cache")}
    assert set(findings) == {"nvcc", "g++", "cuobjdump", "CUTLASS headers", "tvm-ffi headers"}
    assert [name for name, finding in findings.items() if not finding.ok] == ["g++"]
    assert "apt-get" in findings["g++"].fix


def test_doctor_on_a_folder_that_cannot_be_written(find, fake):
    findings = build_findings(nvcc=None, cache=Path("/proc/no-such-cache"))
    assert all(finding.ok for finding in findings)


def test_host_compiler_that_fails_names_its_own_fix(find, monkeypatch, tmp_path):
    (tmp_path / "c++").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "c++").chmod(0o755)
    monkeypatch.setenv("NVCC_CCBIN", str(tmp_path / "c++"))
    with pytest.raises(ToolchainError, match=r"(?s)c\+\+ -dumpfullversion failed with exit status 3.*apt-get install"):
        find()


def test_nvcc_is_asked_without_hidden_flags(find, fake, monkeypatch):
    """A broken NVCC_CCBIN is the host compiler's finding, not nvcc's."""
    (fake.folder / "nvcc").write_text((fake.folder / "nvcc").read_text().replace("main()\n", GUARDED_MAIN))
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "--no-such-flag")
    assert find().versions["nvcc"] == "13.0.88"
