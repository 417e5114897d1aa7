"""What the CPU tests share: a small model, the committed sample, and bundles of libraries that hold no kernel."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from prism_gen.manifest import MANIFEST_NAME, SCHEMA_VERSION, KernelEntry, Manifest, Provenance, encode_manifest
from prism_gen.model import ModelSpec, RopeSpec, SelectionSpec
from prism_gen.spec import KernelSpec
from prism_gen.specialize import specialize

# The shapes are tiny: handing their loops to more threads costs more than it saves, and on a busy machine far more.
torch.set_num_threads(1)

SAMPLE = Path(__file__).parents[2] / "examples/data/smollm2_pycode_L14_4k.safetensors"

BundleMaker = Callable[..., Path]


@pytest.fixture(scope="session")
def model() -> ModelSpec:
    """SmolLM2-135M's shapes, with blocks of 64x64 and 128x64, and a sliding layer at the end."""
    return ModelSpec(
        name="smollm2",
        num_q_heads=9,
        num_kv_heads=3,
        head_dim=64,
        dtype="bf16",
        rope=RopeSpec(theta=100000.0, rotary_dim=64),
        selection=SelectionSpec(block_sizes=((64, 64), (128, 64))),
        layer_kinds=("full",) * 29 + ("sliding",),
    )


@pytest.fixture(scope="session")
def sample() -> dict[str, Tensor]:
    """q [3, 4096, 64], k and v [1, 4096, 64], bf16."""
    return safetensors.torch.load_file(SAMPLE)


@pytest.fixture(scope="session")
def sample_path() -> Path:
    """The file of `sample`."""
    return SAMPLE


def entry_of(spec: KernelSpec, content: bytes) -> KernelEntry:
    """A manifest entry whose library is `content`; the compiler's figures are of no interest to the runtime."""
    return KernelEntry(
        spec=spec,
        key=spec.key,
        name=spec.name,
        arch=spec.arch,
        file=f"lib/{spec.name}.so",
        source=f"src/{spec.name}.cu",
        log=f"log/{spec.name}.txt",
        digest=hashlib.sha256(content).hexdigest(),
        artifact="",
        registers=0,
        smem_bytes=0,
        stack_bytes=0,
        spill_bytes=0,
        instructions={},
    )


@pytest.fixture
def make_bundle(tmp_path: Path, model: ModelSpec) -> BundleMaker:
    """Writes a bundle for `model`, complete and valid up to its libraries, which are `content(spec)`."""

    def make(
        content: Callable[[KernelSpec], bytes] = lambda spec: b"not an ELF file: " + spec.name.encode(),
        *,
        specs: tuple[KernelSpec, ...] | None = None,
    ) -> Path:
        path = tmp_path / "bundle"
        (path / "lib").mkdir(parents=True)
        entries = []
        for spec in specialize(model, ["sm90"]) if specs is None else specs:
            entry = entry_of(spec, content(spec))
            (path / entry.file).write_bytes(content(spec))
            entries.append(entry)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            generator="test",
            models=(model,),
            kernels=tuple(entries),
            toolchain={},
            flags=(),
            provenance=Provenance(created="2026-01-01T00:00:00Z", commit=""),
        )
        (path / MANIFEST_NAME).write_bytes(encode_manifest(manifest))
        return path

    return make
