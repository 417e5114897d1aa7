"""The command line: what it writes, what it says, and what it never imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prism_gen.cli import COMMANDS

REPOSITORY = Path(__file__).parents[2]
CONFIG = REPOSITORY / "tests" / "models" / "qwen3-8b.json"


def test_build_names_each_kernel_and_the_bundle(prism, tmp_path):
    done = prism("build", "--model-config", CONFIG)
    assert done.returncode == 0, done.stderr
    (bundle,) = (path for path in (tmp_path / "generated").iterdir() if path.name != "cache")
    assert (bundle / "manifest.json").is_file()
    for family in ("pool", "select", "attend"):
        assert f"compiling {family}-sm90-" in done.stdout
    assert f"bundle generated/{bundle.name}: 3 kernels (3 compiled, 0 unchanged)" in done.stdout


def test_unchanged_second_build_is_under_a_second_and_runs_no_tool(prism, fake):
    arguments = ("build", "--model-config", CONFIG, "--block-size", "128x128,128x64,64x64", "--out", "b")
    assert prism(*arguments).returncode == 0
    fake.reset()

    def spent_s(*arguments: str) -> float:
        """Processor time: other tests share the machine."""
        before = os.times()
        assert prism(*arguments).returncode == 0
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    rounds = [(spent_s(*arguments), spent_s("--help")) for _ in range(3)]
    assert "(0 compiled, 5 unchanged)" in prism(*arguments).stdout
    assert not fake.calls()
    builds, starts = zip(*rounds, strict=True)
    # Of a core that others share a second buys half as much: then twice what Python, typer and rich take to start.
    assert min(builds) < max(1.0, 2.0 * min(starts)), rounds


def test_two_models_in_one_bundle_need_its_name(prism):
    config = REPOSITORY / "tests" / "models" / "smollm2-135m-instruct.json"
    done = prism("build", "-m", CONFIG, "-m", config)
    assert (done.returncode, done.stdout) == (1, "")
    assert "--out" in done.stderr
    assert prism("build", "-m", CONFIG, "-m", config, "--out", "both").returncode == 0
    names = {model["name"] for model in json.loads(prism("inspect", "both", "--json").stdout)["models"]}
    assert len(names) == 2


def test_options_reach_the_kernels(prism):
    prism("build", "-m", CONFIG, "--block-size", "128x64", "--dtype", "fp16", "--out", "b")
    names = [kernel["name"] for kernel in json.loads(prism("inspect", "b", "--json").stdout)["kernels"]]
    assert [name.rsplit("-", 1)[0] for name in names] == [
        "pool-sm90-fp16-d128-h64-l96",
        "select-sm90-d128-h64-l96",
        "attend-sm90-fp16-d128-b128x64",
    ]


def test_inspect_shows_kernels_and_tools(prism):
    prism("build", "-m", CONFIG, "--out", "b")
    shown = prism("inspect", "b").stdout
    for words in ("b: 3 kernels", "32/8 heads of 128", "attend-sm90-bf16-d128-b128x128", "nvcc 13.0.88"):
        assert words in shown
    (row,) = (line.split() for line in shown.splitlines() if line.startswith(" attend-"))
    assert row[1] == "32"  # registers
    assert row[3:5] == ["0", "1"]  # spilled bytes, tensor-core instructions


def test_inspect_fits_eighty_columns_and_marks_a_missing_library(prism, tmp_path, monkeypatch):
    prism("build", "-m", CONFIG, "--out", "b")
    for library in (tmp_path / "b" / "lib").glob("pool-*"):
        library.unlink()
    monkeypatch.setenv("COLUMNS", "80")
    shown = prism("inspect", "b").stdout
    table = [line for line in shown.splitlines() if line.startswith((" pool-", " select-", " attend-"))]
    assert len(table) == 3
    assert max(map(len, table)) <= 80
    assert table[0].split()[-1] == "gone"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("build", "-m", "absent.json"), "absent.json"),
        (("build", "-m", CONFIG, "--block-size", "128y64"), "128y64"),
        (("build", "-m", CONFIG, "--block-size", "256x256"), "prism_gen/schedules.py"),
        (("build", "-m", CONFIG, "--arch", "sm80"), "no architecture 'sm80'"),
        (("build", "-m", CONFIG, "--dtype", "fp8"), "no dtype 'fp8'"),
        (("build", "-m", CONFIG, "--nvcc", "absent"), "not an executable"),
        (("build", "-m", CONFIG, "--cache", "/proc/cache"), "/proc/cache"),
        (("build", "-m", CONFIG, "--out", "/proc/bundle"), "/proc/bundle"),
        (("build", "-m", CONFIG, "--arch", ","), "names nothing"),
        (("build", "-m", CONFIG, "--block-size", ""), "names nothing"),
        (("inspect", "absent"), "no readable manifest.json"),
    ],
    ids=[
        "config",
        "block size text",
        "block size",
        "arch",
        "dtype",
        "nvcc",
        "cache",
        "out",
        "no arch",
        "no blocks",
        "bundle",
    ],
)
def test_mistake_is_explained_without_a_traceback(prism, arguments, words):
    done = prism(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("package", ["torch", "safetensors"])
def test_run_without_a_runtime_package_names_the_extra(prism, tmp_path, monkeypatch, package):
    absent = f"raise ModuleNotFoundError('No module named {package}', name={package!r})"
    (tmp_path / f"{package}.py").write_text(absent, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{REPOSITORY}")
    done = prism("run", "--bundle", "b", "--qkv", "x.safetensors")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: run needs {package}, which is not installed")
    assert "prism-gen[runtime]" in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_reports_each_part_and_fails_where_it_cannot_build(prism, monkeypatch):
    healthy = prism("doctor")
    assert healthy.returncode == 0
    for part in ("nvcc", "g++", "cuobjdump", "CUTLASS headers", "tvm-ffi headers", "torch", "GPU"):
        assert part in healthy.stdout
    monkeypatch.setenv("NVCC_CCBIN", "no-such-compiler")
    broken = prism("doctor")
    assert broken.returncode == 1
    assert "fix: install a C++17 compiler" in broken.stdout


@pytest.mark.parametrize("command", [command.__name__ for command in COMMANDS])
def test_help_shows_an_example(prism, command):
    done = prism(command, "--help")
    assert f"python -m prism_gen {command}" in done.stdout


def test_building_imports_neither_torch_nor_tvm_ffi(tmp_path, fake, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(fake.folder.parent))
    program = (
        "import sys; from prism_gen.cli import app\n"
        f"app(['build', '-m', {str(CONFIG)!r}, '--out', 'b'], standalone_mode=False)\n"
        "print(sorted({'torch', 'tvm_ffi', 'cutlass_library', 'matplotlib', 'numpy'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_terminated_build_kills_its_compilers_and_leaves_no_scratch(fake, tmp_path, monkeypatch):
    fake.set(nap_s=60)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "CUDA_HOME": str(fake.folder.parent)}
    command = [sys.executable, "-m", "prism_gen", "build", "-m", str(CONFIG), "-j", "2"]
    build = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    cache = tmp_path / "generated" / "cache"
    deadline = time.monotonic() + 20
    while len(list(cache.glob("*.tmp-*/*.so"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    build.terminate()
    assert build.wait(timeout=20) == 128 + 15
    assert not list(cache.glob("*.tmp-*"))


def test_tune_asks_for_a_gpu_before_it_builds(prism, fake):
    if pytest.importorskip("torch").cuda.is_available():
        pytest.skip("a GPU is here")
    fake.reset()
    done = prism("tune", "-m", CONFIG, "--only", "pool")
    assert done.returncode == 1
    assert "torch sees no CUDA device" in done.stderr
    assert not fake.calls()


def test_candidates_do_not_replace_a_bundle(prism, tree, tmp_path):
    assert prism("build", "-m", CONFIG, "--out", "b").returncode == 0
    before = tree(tmp_path / "b")
    done = prism("tune", "-m", CONFIG, "--only", "pool", "--candidates", "b", "--prepare")
    assert done.returncode == 1
    assert "--candidates b is a bundle of another build" in done.stderr
    assert tree(tmp_path / "b") == before
    for _ in range(2):  # its own, it may go on with
        assert prism("tune", "-m", CONFIG, "--only", "pool", "--candidates", "c", "--prepare").returncode == 0
