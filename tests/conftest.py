"""What every test folder shares: models, a tiny template tree, and a toolchain that only pretends to compile.

Owns fixtures. Must not import torch, so that the unit tests run without it.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from prism_gen.build import build
from prism_gen.manifest import Manifest
from prism_gen.model import ModelSpec, SelectionSpec
from prism_gen.toolchain import Toolchain
from tests.tiny_model import TINY

TESTS = Path(__file__).parent


@pytest.fixture
def make_model() -> Callable[..., ModelSpec]:
    """Factory of small models; keyword arguments replace fields, block_sizes and fused_rope those of the selection."""

    def make(
        *, block_sizes: tuple[tuple[int, int], ...] = ((128, 128),), fused_rope: bool = False, **fields: object
    ) -> ModelSpec:
        base = msgspec.structs.replace(TINY, selection=SelectionSpec(block_sizes=block_sizes, fused_rope=fused_rope))
        return msgspec.structs.replace(base, **fields)

    return make


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    """A template tree of the three families: each includes a header of its own, which includes a shared one."""
    root = tmp_path / "templates"
    for family in ("pool", "select", "attend"):
        (root / family).mkdir(parents=True)
        (root / family / f"{family}.cu.jinja").write_text(
            f'#include "{family}/kernel.h"\n// {{{{ spec_json }}}} {{{{ head_dim }}}}\n', encoding="utf-8"
        )
        (root / family / "kernel.h").write_text('#include "../shared/common.h"\n#include <vector>\n', encoding="utf-8")
    (root / "shared").mkdir()
    (root / "shared" / "common.h").write_text("// common\n", encoding="utf-8")
    return root


class FakeToolchain:
    """A folder with a pretended nvcc; counts what it was asked to compile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        script = f"#!{sys.executable}\n" + (TESTS / "fake_nvcc.py").read_text(encoding="utf-8")
        for tool in ("nvcc", "ptxas", "cuobjdump", "nvdisasm"):
            (folder / tool).write_text(script, encoding="utf-8")
            (folder / tool).chmod(0o755)
        cicc = folder.parent / "nvvm" / "bin" / "cicc"
        cicc.parent.mkdir(parents=True)
        cicc.touch()
        (folder.parent / "lib").mkdir()
        (folder.parent / "lib" / "libcudart_static.a").touch()
        self.set(nap_s=0.0, version="13.0.88")

    def set(self, *, nap_s: float | None = None, version: str | None = None) -> None:
        """nap_s: how long each compile takes. version: what nvcc says of itself; a change touches nvcc's file."""
        if nap_s is not None:
            (self.folder / "NAP_S").write_text(str(nap_s), encoding="utf-8")
        if version is not None:
            (self.folder / "VERSION").write_text(version, encoding="utf-8")
            with (self.folder / "nvcc").open("a", encoding="utf-8") as file:
                file.write(f"# {version}\n")

    def calls(self) -> Counter[str]:
        """What nvcc was called for since the last reset: kernel name, or "dryrun" -> times."""
        log = self.folder / "calls.log"
        return Counter(log.read_text(encoding="utf-8").split()) if log.exists() else Counter()

    def reset(self) -> None:
        """Forget the calls so far."""
        (self.folder / "calls.log").unlink(missing_ok=True)

    def toolchain(self, **versions: str) -> Toolchain:
        """The tools; versions replace those of the same name."""
        known = {"nvcc": "13.0.88", "g++": "12.2.0", "cutlass": "4.2.0.0", "tvm-ffi": "0.1.15"}
        return Toolchain(
            nvcc=self.folder / "nvcc",
            cxx=Path(shutil.which("true") or "/bin/true"),
            cuobjdump=self.folder / "cuobjdump",
            cudart_dir=self.folder.parent / "lib",
            cutlass_include=self.folder,
            tvm_ffi_include=self.folder,
            versions={**known, **{name.replace("_", "-"): version for name, version in versions.items()}},
        )


@pytest.fixture
def fake(tmp_path: Path) -> FakeToolchain:
    """A toolchain that only pretends to compile."""
    (tmp_path / "cuda").mkdir()
    return FakeToolchain(tmp_path / "cuda" / "bin")


@pytest.fixture
def run_build(fake: FakeToolchain, templates: Path, tmp_path: Path) -> Callable[..., Manifest]:
    """Build models with the pretended compiler; returns the manifest."""

    def run(*models, out="bundle", toolchain=None, jobs=2):
        return build(
            models,
            archs=["sm90"],
            out=tmp_path / out,
            cache=tmp_path / "cache",
            toolchain=toolchain or fake.toolchain(),
            jobs=jobs,
            report=lambda event: None,
            root=templates,
        )

    return run


@pytest.fixture
def tree() -> Callable[[Path], dict[str, bytes]]:
    """Function: folder -> path below it -> bytes, of every file."""

    def read(folder: Path) -> dict[str, bytes]:
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    return read
