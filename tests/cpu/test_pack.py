"""`prism_gen pack`: what is in the file, and that it runs where nothing that builds is installed."""

from __future__ import annotations

import subprocess
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import msgspec
import pytest

from prism_gen.errors import BundleError, ConfigError
from prism_gen.manifest import MANIFEST_NAME, encode_manifest, read_manifest
from prism_gen.pack import pack, platform_tag
from prism_gen.package_names import bundle_name, check_name, module
from prism_gen.runtime import packages
from prism_gen.runtime.load import load_bundle

REPOSITORY = Path(__file__).parents[2]
# Building needs these; the runtime must not.
BUILD_ONLY = ("jinja2", "cutlass_library", "nvidia", "typer", "rich")

# Run in the fresh environment: a finder that refuses what only building needs, then one call.
CALL = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BUILD_ONLY!r}:
            raise ModuleNotFoundError("only building needs " + name, name=name)
sys.meta_path.insert(0, Refuse())
import torch
from prism_gen.runtime import PrismAttention
attention = PrismAttention.from_package("smollm2", layer=3, backend="reference")
q, k = torch.randn(1, 200, 9, 64), torch.randn(1, 200, 3, 64)
out = attention(q, k, k)
entry = attention.resolutions or "reference"
print(tuple(out.shape), bool(out.isfinite().all()), entry)
"""


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_wheel_installs_and_runs_in_a_fresh_environment(make_bundle, tmp_path):
    """pip itself installs it, offline; torch, tvm-ffi and msgspec are lent by this environment, the rest is refused."""
    wheel = pack([make_bundle()], out=tmp_path / "dist", form="wheel", name=None)
    assert wheel.name.startswith("prism_gen_bundle_smollm2-0.")
    venv.create(tmp_path / "fresh", with_pip=True)
    python = tmp_path / "fresh" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*install, str(wheel)], check=True)
    lent = Path(sysconfig.get_paths()["purelib"])
    command = [str(python), "-c", f"import sys; sys.path += [{str(lent)!r}, {str(REPOSITORY)!r}]\n{CALL}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 200, 9, 64) True reference"


def test_a_wheel_is_what_its_record_says_and_the_same_bytes_again(make_bundle, tmp_path):
    bundle = make_bundle()
    wheel = pack([bundle], out=tmp_path / "a", form="wheel", name="mine")
    again = pack([bundle], out=tmp_path / "b", form="wheel", name="mine")
    assert wheel.read_bytes() == again.read_bytes()
    files = contents(wheel)
    record = files["prism_gen_bundle_mine-0.1.0.dist-info/RECORD"].decode().splitlines()
    assert {line.split(",")[0] for line in record} == files.keys()
    names = {name for name in files if "/bundle/" in name}
    manifest = read_manifest(bundle)
    expected = {f"prism_gen_bundle_mine/bundle/{entry.file}" for entry in manifest.kernels}
    assert names == {"prism_gen_bundle_mine/bundle/manifest.json"} | expected  # no sources, no logs


def test_a_tar_unpacks_to_a_bundle(make_bundle, tmp_path):
    path = pack([make_bundle()], out=tmp_path, form="tar", name=None)
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path / "there")  # our own; `filter` is younger than Debian 12's Python
    (folder,) = (tmp_path / "there").iterdir()
    assert len(load_bundle(folder).manifest.kernels) == 4


def test_bundles_of_one_model_join_and_others_do_not(make_bundle, tmp_path):
    whole = make_bundle()
    manifest = read_manifest(whole)
    for name, kernels in (("a", manifest.kernels[:2]), ("b", manifest.kernels[1:])):
        (tmp_path / name / "lib").mkdir(parents=True)
        part = msgspec.structs.replace(manifest, kernels=kernels)
        (tmp_path / name / MANIFEST_NAME).write_bytes(encode_manifest(part))
        for entry in kernels:
            (tmp_path / name / entry.file).write_bytes((whole / entry.file).read_bytes())
    joined = pack([tmp_path / "a", tmp_path / "b"], out=tmp_path / "joined", form="wheel", name=None)
    alone = pack([whole], out=tmp_path / "alone", form="wheel", name=None)
    assert joined.read_bytes() == alone.read_bytes()
    other = msgspec.structs.replace(part, models=())
    (tmp_path / "b" / MANIFEST_NAME).write_bytes(encode_manifest(other))
    with pytest.raises(ConfigError, match="other models"):
        pack([tmp_path / "a", tmp_path / "b"], out=tmp_path, form="wheel", name=None)
    with pytest.raises(ConfigError, match="needs a name"):
        pack([tmp_path / "b"], out=tmp_path, form="wheel", name=None)


def test_a_damaged_bundle_is_not_packed(make_bundle, tmp_path):
    bundle = make_bundle()
    next((bundle / "lib").iterdir()).write_bytes(b"torn")
    with pytest.raises(BundleError, match="not what its manifest says"):
        pack([bundle], out=tmp_path, form="wheel", name=None)


def test_the_platform_tag_names_the_newest_glibc_that_a_library_needs():
    assert platform_tag([b"..GLIBC_2.34\0GLIBC_2.3", b"GLIBC_2.29"]).startswith("manylinux_2_34_")
    assert platform_tag([b""]).startswith("manylinux_2_17_")


def test_names_of_models_become_names_of_packages():
    assert bundle_name("meta-llama/Llama-3.1-8B") == "llama-3.1-8b"
    assert module("llama-3.1-8b") == "prism_gen_bundle_llama_3_1_8b"
    with pytest.raises(ConfigError, match="lower-case"):
        check_name("Llama 3")


def test_a_package_that_is_not_installed_is_named_with_those_that_are(monkeypatch):
    with pytest.raises(BundleError, match="no bundle package at all"):
        packages.load_package("llama")
    monkeypatch.setattr(packages, "installed_bundles", lambda: {"a": Path("a"), "b": Path("b")})
    with pytest.raises(BundleError, match=r"2 bundles are installed[\s\S]*a, b"):
        packages.load_package()
