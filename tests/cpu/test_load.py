"""Loading a bundle: whatever is wrong between the disk and a launch has its own words."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from prism_gen.errors import BundleError, ConfigError, DeviceError
from prism_gen.manifest import MANIFEST_NAME, SCHEMA_VERSION
from prism_gen.model import ModelSpec
from prism_gen.runtime import load
from prism_gen.runtime.load import load_bundle
from prism_gen.spec import KernelSpec
from prism_gen.specialize import specialize

BundleMaker = Callable[..., Path]  # the make_bundle fixture


def edit_manifest(bundle: Path, **fields: object) -> None:
    path = bundle / MANIFEST_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_whole_bundle_loads_without_opening_a_library(make_bundle: BundleMaker, model: ModelSpec) -> None:
    bundle = load_bundle(make_bundle())
    assert bundle.model() == model
    assert [entry.spec for entry in bundle.manifest.kernels] == list(specialize(model, ["sm90"]))


def test_missing_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no bundle at .*nowhere[\s\S]*python -m prism_gen build .*--out"):
        load_bundle(tmp_path / "nowhere")


def test_a_file_is_not_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="it is a file"):
        load_bundle(tmp_path / "file")


def test_missing_manifest(make_bundle: BundleMaker) -> None:
    path = make_bundle()
    (path / MANIFEST_NAME).unlink()
    with pytest.raises(BundleError, match=r"no readable manifest\.json"):
        load_bundle(path)


def test_truncated_manifest(make_bundle: BundleMaker) -> None:
    path = make_bundle()
    data = (path / MANIFEST_NAME).read_bytes()
    (path / MANIFEST_NAME).write_bytes(data[: len(data) // 2])
    with pytest.raises(BundleError, match=r"not a bundle manifest: .*truncated"):
        load_bundle(path)


def test_newer_schema(make_bundle: BundleMaker) -> None:
    path = make_bundle()
    edit_manifest(path, schema_version=SCHEMA_VERSION + 1, generator="9.9", unheard_of=1)
    with pytest.raises(BundleError, match=rf"schema_version {SCHEMA_VERSION + 1}[\s\S]*install prism_gen 9\.9"):
        load_bundle(path)


def test_unknown_arch(make_bundle: BundleMaker, model: ModelSpec) -> None:
    foreign = tuple(msgspec.structs.replace(spec, arch="sm31") for spec in specialize(model, ["sm90"]))
    with pytest.raises(BundleError, match=r"built for sm31, which this prism_gen does not know[\s\S]*sm90"):
        load_bundle(make_bundle(specs=foreign))


@pytest.mark.parametrize("damage", ["missing", "truncated", "one bit"])
def test_damaged_library(make_bundle: BundleMaker, damage: str) -> None:
    path = make_bundle()
    library = sorted((path / "lib").iterdir())[0]
    data = bytearray(library.read_bytes())
    if damage == "missing":
        library.unlink()
    elif damage == "truncated":
        library.write_bytes(data[:-5])
    else:
        data[3] ^= 1
        library.write_bytes(data)
    words = "cannot be read" if damage == "missing" else "corrupted or truncated"
    with pytest.raises(BundleError, match=words) as caught:
        load_bundle(path)
    assert library.name in str(caught.value)


def test_bundle_that_is_rebuilt_under_the_check(make_bundle: BundleMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first manifest read is the old one, whose library the new build has removed."""
    path = make_bundle()
    new = load.read_manifest(path)
    gone = msgspec.structs.replace(new.kernels[0], file="lib/gone.so")
    manifests = [msgspec.structs.replace(new, kernels=(gone,))]
    monkeypatch.setattr(load, "read_manifest", lambda _: manifests.pop() if manifests else new)
    assert load_bundle(path).manifest == new


def test_foreign_device(make_bundle: BundleMaker) -> None:
    bundle = load_bundle(make_bundle())
    assert bundle.arch_for((9, 0), "an H200") == "sm90"
    with pytest.raises(
        DeviceError, match=r"no kernels exist for a T4 \(compute capability 7\.5\)[\s\S]*sm90 for capability 9\.0"
    ):
        bundle.arch_for((7, 5), "a T4")


def test_bundle_without_kernels_for_the_device(make_bundle: BundleMaker) -> None:
    bundle = load_bundle(make_bundle(specs=()))
    with pytest.raises(BundleError, match=r"holds no kernel for an H200[\s\S]*no kernels[\s\S]*build .*--arch sm90"):
        bundle.arch_for((9, 0), "an H200")


def test_unknown_model_name(make_bundle: BundleMaker) -> None:
    bundle = load_bundle(make_bundle())
    with pytest.raises(ConfigError, match=r"no model 'gpt' in[\s\S]*smollm2"):
        bundle.model("gpt")


def test_a_library_that_is_not_one(make_bundle: BundleMaker) -> None:
    bundle = load_bundle(make_bundle())
    with pytest.raises(BundleError, match="does not open as a kernel library"):
        bundle.module(bundle.manifest.kernels[0])


SPEC_ONLY = """
#include <tvm/ffi/function.h>
#include <tvm/ffi/string.h>
static tvm::ffi::String embedded() {{ return tvm::ffi::String(R"spec({json})spec"); }}
TVM_FFI_DLL_EXPORT_TYPED_FUNC(spec, embedded)
"""


@pytest.fixture(scope="module")
def spec_library(model: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> tuple[KernelSpec, bytes]:
    """A real shared library that embeds the first spec of the model, and exports only spec(); g++, 5 s."""
    import tvm_ffi

    folder = tmp_path_factory.mktemp("lib")
    spec = specialize(model, ["sm90"])[0]
    (folder / "spec.cc").write_text(SPEC_ONLY.format(json=spec.to_json()))
    includes = [
        f"-I{path}" for path in (tvm_ffi.libinfo.find_include_path(), tvm_ffi.libinfo.find_dlpack_include_path())
    ]
    command = ["g++", "-std=c++17", "-shared", "-fPIC", *includes, "-o", "spec.so", "spec.cc"]
    subprocess.run(command, cwd=folder, check=True)
    return spec, (folder / "spec.so").read_bytes()


def test_embedded_spec_is_compared(make_bundle: BundleMaker, spec_library: tuple[KernelSpec, bytes]) -> None:
    """Every library of the bundle embeds the first kernel's spec: that one opens, the next is refused."""
    spec, content = spec_library
    bundle = load_bundle(make_bundle(lambda _: content))
    first, second = bundle.manifest.kernels[:2]
    module = bundle.module(first)
    assert str(module.get_function("spec")()) == spec.to_json()
    assert bundle.module(first) is module
    with pytest.raises(BundleError, match="embeds another spec than the manifest"):
        bundle.module(second)


def test_a_tuned_bundle_knows_from_where_sparse_wins_on_its_gpu_alone(make_bundle: BundleMaker) -> None:
    path = make_bundle()
    assert load_bundle(path).sparse_from("NVIDIA H200", "bf16-d64-b64x64", density=0.25) is None
    crossings = [
        {"seqlen": n, "dense": "d", "dense_ms": 1, "selection_ms": 0, "attend_ms": [[0.1, 1]], "wins_below": below}
        for n, below in ((4096, 0.2), (16384, 0.6))
    ]
    crossover = {"arch": "sm90", "label": "bf16-d64-b64x64", "key": "k", "heads": [9, 3], "crossings": crossings}
    tuning = {"digest": "", "gpu": "NVIDIA H200", "driver": "", "cuda": "", "speedups": {}, "crossovers": [crossover]}
    edit_manifest(path, tuning=tuning)
    bundle = load_bundle(path)
    lengths = [bundle.sparse_from("NVIDIA H200", "bf16-d64-b64x64", density=density) for density in (0.1, 0.25, 0.9)]
    assert lengths == [4096, 16384, 16385]
    assert bundle.sparse_from("NVIDIA H100", "bf16-d64-b64x64", density=0.1) is None
    assert bundle.sparse_from("NVIDIA H200", "bf16-d64-b128x64", density=0.1) is None
