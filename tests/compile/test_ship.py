"""A bundle of real kernels leaves this machine: as a wheel of few megabytes, and into a C++ program.

Needs nvcc, no GPU; where there is one, the C++ program runs its kernel.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from prism_gen.build import build
from prism_gen.jobs import default_jobs
from prism_gen.manifest import read_manifest
from prism_gen.model_config import load_model_config
from prism_gen.pack import pack
from prism_gen.toolchain import find_toolchain

pytestmark = pytest.mark.compile

REPOSITORY = Path(__file__).parents[2]
CACHE = REPOSITORY / "generated" / "cache"
CONFIG = REPOSITORY / "tests" / "models" / "smollm2-135m-instruct.json"
MAX_WHEEL_BYTES = 10e6  # of one model on one arch


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """SmolLM2-135M at 64x64: kernels that tests/compile/test_compile.py has compiled as well."""
    path = tmp_path_factory.mktemp("ship") / "bundle"
    build(
        [load_model_config(CONFIG, block_sizes=((64, 64),))],
        archs=["sm90"],
        out=path,
        cache=CACHE,
        toolchain=find_toolchain(nvcc=None, cache=CACHE),
        jobs=default_jobs(),
        report=lambda event: None,
    )
    return path


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """examples/cpp, built as its README says."""
    out = tmp_path_factory.mktemp("cpp") / "attend"
    # The script asks `python3` where the headers are: the one that runs these tests.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY)}
    script = REPOSITORY / "examples" / "cpp" / "build.sh"
    done = subprocess.run([script, out], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    return out


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_a_wheel_of_one_model_is_small(bundle, tmp_path):
    assert pack([bundle], out=tmp_path, form="wheel", name=None).stat().st_size < MAX_WHEEL_BYTES


def test_cpp_loads_a_kernel_that_says_what_it_is(program, bundle):
    done = run(program, bundle)
    assert done.returncode == 0, done.stdout + done.stderr
    entry = next(entry for entry in read_manifest(bundle).kernels if entry.spec.family == "attend")
    assert f"loaded {entry.name}\nspec {entry.spec.to_json()}\n" in done.stdout


def test_cpp_is_told_which_argument_is_wrong(program, bundle):
    assert "refused ValueError: q is on device" in run(program, bundle).stdout


def test_cpp_runs_attention_where_there_is_a_gpu(program, bundle):
    done = run(program, bundle)
    has_gpu = Path("/proc/driver/nvidia/gpus").exists()
    assert ("ran on the GPU: largest error" if has_gpu else "no GPU: nothing was launched") in done.stdout


@pytest.mark.parametrize(("arguments", "status"), [((), 2), (("absent",), 1), (None, 1)], ids=["none", "path", "name"])
def test_cpp_explains_a_mistake(program, bundle, arguments, status):
    done = run(program, *((bundle, "no-such-kernel") if arguments is None else arguments))
    assert done.returncode == status
    assert "usage" in done.stderr or "error: " in done.stderr
