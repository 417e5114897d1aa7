"""manifest.json: what is written is what is read, and damage is named."""

from __future__ import annotations

import json

import msgspec
import pytest

from prism_gen.errors import BundleError
from prism_gen.manifest import KernelEntry, Manifest, Provenance, decode_manifest, encode_manifest, read_manifest
from prism_gen.specialize import specialize


@pytest.fixture
def manifest(make_model) -> Manifest:
    """Of one model, with three kernels."""
    model = make_model()
    entries = tuple(
        KernelEntry(
            spec=spec,
            key=spec.key,
            name=spec.name,
            arch="sm90",
            file=f"lib/{spec.name}.so",
            source=f"src/{spec.name}.cu",
            log=f"log/{spec.name}.log",
            digest="0" * 64,
            artifact="1" * 64,
            registers=168,
            smem_bytes=1024,
            stack_bytes=0,
            spill_bytes=0,
            instructions={"HGMMA": 8},
        )
        for spec in specialize(model, ["sm90"])
    )
    return Manifest(
        schema_version=1,
        generator="0.1.0",
        models=(model,),
        kernels=entries,
        toolchain={"nvcc": "13.0.88"},
        flags=("-O3",),
        provenance=Provenance(created="2026-01-01T00:00:00+00:00", commit=""),
    )


def test_manifest_survives_json_with_typed_specs(manifest):
    assert decode_manifest(encode_manifest(manifest), where="m") == manifest


def test_equal_manifests_give_equal_bytes(manifest):
    shuffled = msgspec.structs.replace(manifest, toolchain=dict(reversed(manifest.toolchain.items())))
    assert encode_manifest(shuffled) == encode_manifest(manifest)
    assert encode_manifest(manifest).endswith(b"}\n")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda obj: obj.pop("kernels"), "kernels"),
        (lambda obj: obj.update(surprise=1), "surprise"),
        (lambda obj: obj["kernels"][1].update(registers="many"), r"kernels\[1\]\.registers"),
        (lambda obj: obj["kernels"][1].update(key="0" * 16), r"kernels\[1\]\.key is '0{16}'"),
        (lambda obj: obj["kernels"][0].update(arch="sm80"), r"kernels\[0\]\.arch is 'sm80'"),
        (lambda obj: obj["kernels"][2]["spec"]["problem"].update(head_dim=64), r"kernels\[2\]\.key"),
        (lambda obj: obj["kernels"][2]["spec"]["problem"].pop("dtype"), r"kernels\[2\]\.spec.*dtype"),
        (lambda obj: obj["kernels"][0].update(file="../../etc/passwd"), "outside the bundle"),
        (lambda obj: obj["kernels"][0].update(log="/etc/passwd"), "outside the bundle"),
        (lambda obj: obj["models"][0].update(head_dim=None), "head_dim"),
        (
            lambda obj: obj["kernels"][1]["spec"].update(surprise=1),
            r"unknown field `surprise` - at `\$\.kernels\[1\]\.spec",
        ),
        (lambda obj: obj.update(schema_version=0), "schema_version 0"),
    ],
    ids=[
        "kernels",
        "extra",
        "type",
        "key",
        "arch",
        "spec changed",
        "spec short",
        "path up",
        "path root",
        "model",
        "spec extra",
        "schema 0",
    ],
)
def test_damage_is_named(manifest, damage, words):
    obj = json.loads(encode_manifest(manifest))
    damage(obj)
    with pytest.raises(BundleError, match=words):
        decode_manifest(json.dumps(obj).encode(), where="manifest.json")


@pytest.mark.parametrize("length", [0, 1, 200, -2])
def test_truncated_manifest_is_refused(manifest, length):
    with pytest.raises(BundleError, match="not a bundle manifest"):
        decode_manifest(encode_manifest(manifest)[:length], where="manifest.json")


@pytest.mark.parametrize(
    "data",
    [b'{"schema_version": 1, "generator": "\xff"}', b'{"schema_version": 1, "x":' + b"[" * 10_000],
    ids=["utf-8", "deep"],
)
def test_bytes_that_are_no_json_are_refused(data):
    with pytest.raises(BundleError, match="not a bundle manifest"):
        decode_manifest(data, where="manifest.json")


def test_newer_schema_names_the_version_that_reads_it():
    newer = b'{"schema_version": 99, "generator": "7.0.0", "kernels": {"another": "shape"}}'
    with pytest.raises(BundleError, match=r"(?s)schema_version 99.*install prism_gen 7\.0\.0"):
        decode_manifest(newer, where="manifest.json")


def test_missing_bundle_gives_the_build_command(tmp_path):
    with pytest.raises(BundleError, match=r"(?s)no readable manifest\.json.*prism_gen build"):
        read_manifest(tmp_path / "nowhere")
