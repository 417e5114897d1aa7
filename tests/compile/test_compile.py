"""Kernels compiled for real: every family passes its gates, and what must be refused is refused.

Needs nvcc, no GPU. Libraries come from the checkout's cache where their inputs did not change.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import msgspec
import pytest

from prism_gen import arch as arch_module
from prism_gen import fingerprint
from prism_gen.build import build
from prism_gen.compile import Compiler
from prism_gen.errors import CompileError
from prism_gen.families import FAMILIES
from prism_gen.fingerprint import make_source
from prism_gen.jobs import default_jobs
from prism_gen.manifest import KernelEntry
from prism_gen.model import ModelSpec, RopeSpec, SelectionSpec
from prism_gen.model_config import load_model_config
from prism_gen.render import render, template_root
from prism_gen.schedules import ROWS
from prism_gen.specialize import specialize
from prism_gen.toolchain import Toolchain, find_toolchain
from tools.kernel_table import TABLE, digest, figures, known_figures, representative, versions

pytestmark = pytest.mark.compile

REPOSITORY = Path(__file__).parents[2]
CACHE = REPOSITORY / "generated" / "cache"
MODELS = REPOSITORY / "tests" / "models"
EXPORTS = {
    "pool": ("pool",),
    "rotate": ("rotate", "rotate_sub_blocks", "rotate_only"),
    "select": ("select", "scratch_floats"),
    "subpool": ("subpool",),
    "score": ("score", "scratch_floats"),
    "attend": ("attend",),
}


@pytest.fixture(scope="module")
def toolchain() -> Toolchain:
    """The real one; where a part is missing the test fails with the command that installs it."""
    return find_toolchain(nvcc=None, cache=CACHE)


def _with_rotate(model: ModelSpec) -> ModelSpec:
    """The model, with the kernel that rotates and pools in one pass."""
    return msgspec.structs.replace(model, selection=msgspec.structs.replace(model.selection, fused_rope=True))


def _with_sub_blocks(model: ModelSpec) -> ModelSpec:
    """The model under another name, with the other estimator, at 64x64."""
    selection = msgspec.structs.replace(model.selection, estimator="subblock", sub_block_q=4, block_sizes=((64, 64),))
    return msgspec.structs.replace(model, name=f"{model.name}-fine", selection=selection)


@pytest.fixture(scope="module")
def bundle(toolchain, tmp_path_factory) -> Path:
    """Qwen3-8B (head_dim 128) at 128x128 and 64x64, SmolLM2-135M (head_dim 64) at 64x64, compiled for sm90."""
    return tmp_path_factory.mktemp("bundle") / "real"


@pytest.fixture(scope="module")
def kernels(toolchain, bundle) -> tuple[KernelEntry, ...]:
    """Entries of the built bundle."""
    plain = [
        load_model_config(MODELS / "qwen3-8b.json", block_sizes=((128, 128),)),
        load_model_config(MODELS / "smollm2-135m-instruct.json", block_sizes=((64, 64),)),
    ]
    models = [changed(model) for changed in (_with_rotate, _with_sub_blocks) for model in plain]
    manifest = build(
        models,
        archs=["sm90"],
        out=bundle,
        cache=CACHE,
        toolchain=toolchain,
        jobs=default_jobs(),
        report=lambda event: None,
    )
    return manifest.kernels


def test_every_family_compiles_for_both_head_dims(kernels):
    built = {(entry.spec.family, entry.spec.problem.head_dim) for entry in kernels}
    assert built == {(family, head_dim) for family in FAMILIES for head_dim in (64, 128)}


def test_the_table_is_what_its_rows_compile_to(kernels, toolchain):
    """Of the rows that these kernels stand for. Others rest on digests alone: see tests/unit/test_kernel_table.py."""
    committed = TABLE.read_text(encoding="utf-8")
    if versions(toolchain) not in committed:
        pytest.skip(f"another toolchain than the table's: {versions(toolchain)}")
    rows = {representative(row) for row in ROWS}
    sample = [entry for entry in kernels if entry.spec in rows]
    compiled = {
        digest(entry.spec): figures(
            registers=entry.registers,
            smem_bytes=entry.smem_bytes,
            spill_bytes=entry.spill_bytes,
            instructions=entry.instructions,
        )
        for entry in sample
    }
    known = known_figures(committed)
    assert compiled == {code: known.get(code) for code in compiled}, "python tools/kernel_table.py, and read the diff"
    sampled = {(entry.spec.family, entry.spec.problem.head_dim) for entry in sample}
    assert sampled == {(family, head_dim) for family in FAMILIES for head_dim in (64, 128)}


def test_no_kernel_spills_or_uses_local_memory(kernels):
    for entry in kernels:
        figures = (entry.spill_bytes, entry.stack_bytes, entry.instructions["LDL"], entry.instructions["STL"])
        assert figures == (0, 0, 0, 0), entry.name


def test_products_use_the_tensor_cores_tma_and_register_reallocation(kernels):
    for entry in kernels:
        if entry.spec.family in ("attend", "score"):
            assert all(entry.instructions[opcode] > 0 for opcode in ("HGMMA", "UTMALDG", "USETMAXREG")), entry.name


def test_every_kernel_fits_shared_memory_and_registers(kernels):
    for entry in kernels:
        assert entry.smem_bytes <= 232448, entry.name
        assert 0 < entry.registers <= 255, entry.name


def test_library_exports_its_functions(kernels, bundle):
    for entry in kernels:
        library = (bundle / entry.file).read_bytes()
        for name in (*EXPORTS[entry.spec.family], "spec"):
            assert f"__tvm_ffi_{name}\0".encode() in library, f"{entry.name} does not export {name}"


def test_library_opens_and_returns_the_spec_of_its_manifest(kernels, bundle):
    from prism_gen.runtime.load import load_bundle

    loaded = load_bundle(bundle)
    for entry in kernels:
        assert loaded.module(entry).spec() == entry.spec.to_json()


def test_library_needs_only_the_c_and_cxx_runtimes(kernels, bundle):
    for entry in kernels:
        readelf = ["readelf", "--dynamic", str(bundle / entry.file)]
        dynamic = subprocess.run(readelf, capture_output=True, text=True, check=True).stdout
        needed = set(re.findall(r"\(NEEDED\).*\[(\w[\w+-]*)\.so", dynamic))
        # No libcudart, libcuda, libtorch, libpython; and no libtvm_ffi, whose symbols the loading process provides.
        assert needed <= {"libstdc++", "libgcc_s", "libc", "libm", "ld-linux-x86-64"}, entry.name
        assert "libc" in needed


@pytest.mark.slow
def test_fp16_other_head_dims_and_partial_interleaved_rotation_compile(make_model, toolchain):
    """In as few kernels as show each family that has a dtype; the bundle above is bf16, its RoPE half-split, whole."""
    selection = SelectionSpec(block_sizes=((128, 64),), fused_rope=True)
    fine = msgspec.structs.replace(selection, estimator="subblock")
    specs = [
        spec
        for head_dim, chosen, families in (
            (96, selection, ("pool", "rotate", "attend")),
            (256, fine, ("rotate", "subpool")),
        )
        for spec in specialize(
            make_model(
                head_dim=head_dim,
                dtype="fp16",
                rope=RopeSpec(rotary_dim=head_dim // 2, interleaved=True),
                selection=chosen,
            ),
            ["sm90"],
        )
        if spec.family in families
    ]
    assert len(specs) == 5
    root = template_root()
    sources = [make_source(spec, render(spec, root), root=root, toolchain=toolchain) for spec in specs]
    compiler = Compiler(toolchain=toolchain, cache=CACHE, root=root)
    compiler.compile_all(sources, jobs=default_jobs(), report=lambda event: None)  # each passes its gates


@pytest.fixture
def compile_one(toolchain, tmp_path):
    """Compile one spec from a template tree, in a cache of its own."""

    def run(spec, root):
        compiler = Compiler(toolchain=toolchain, cache=tmp_path / "cache", root=root)
        source = make_source(spec, render(spec, root), root=root, toolchain=toolchain)
        return compiler.compile_all([source], jobs=1, report=lambda event: None)[0]

    return run


def test_target_without_its_feature_suffix_is_refused(compile_one, monkeypatch):
    spec = specialize(load_model_config(MODELS / "qwen3-8b.json"), ["sm90"])[-1]
    plain = arch_module.ARCHS["sm90"]._replace(gencode="arch=compute_90,code=sm_90")
    monkeypatch.setitem(arch_module.ARCHS, "sm90", plain)
    assert "-gencode=arch=compute_90,code=sm_90" in fingerprint.flags("sm90")
    with pytest.raises(CompileError, match="without the 'a' suffix"):
        compile_one(spec, template_root())


LOCAL_ARRAY = """
__global__ void kernel(float* x, int n) {
  float held[64];
  for (int i = 0; i < n; ++i) held[i % 64] = x[i] * i;
  x[threadIdx.x] = held[threadIdx.x % 64];
}
void launch(float* x) { kernel<<<1, 64>>>(x, 5); }
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LOCAL_ARRAY, "fails its gates\n    256 bytes of stack frame"),
        ("int nothing;", "ptxas reported no kernel"),
        ("__global__ void kernel() { undeclared(); }", 'identifier "undeclared" is undefined'),
    ],
    ids=["local memory", "no kernel", "syntax"],
)
def test_unusable_kernel_is_refused_in_words(compile_one, make_model, tmp_path, text, words):
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "pool.cu.jinja").write_text(text)
    with pytest.raises(CompileError) as caught:
        compile_one(specialize(make_model(), ["sm90"])[0], tmp_path)
    assert words in str(caught.value)
    assert not list((tmp_path / "cache").glob("*.tmp-*"))


def test_usable_kernel_gives_the_figures_of_ptxas(compile_one, make_model, tmp_path):
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "pool.cu.jinja").write_text(
        "__global__ void kernel(float* x) { __shared__ float s[256]; s[threadIdx.x] = x[threadIdx.x];\n"
        "__syncthreads(); x[threadIdx.x] = s[255 - threadIdx.x]; }\nvoid launch(float* x) { kernel<<<1, 256>>>(x); }\n"
    )
    artifact = compile_one(specialize(make_model(), ["sm90"])[0], tmp_path)
    figures = msgspec.to_builtins(artifact.figures)
    assert figures.pop("registers") in range(4, 33)
    assert figures == {
        "static_smem_bytes": 1024,
        "stack_bytes": 0,
        "spill_bytes": 0,
        "instructions": {"HGMMA": 0, "UTMALDG": 0, "USETMAXREG": 0, "LDL": 0, "STL": 0},
    }
