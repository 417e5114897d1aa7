"""Writes docs/kernels.md, what each schedule row compiles to; run it after a change to a row or template.

    python tools/kernel_table.py            # compiles the rows whose code changed, about 25 s a kernel and core
    python tools/kernel_table.py --check    # compiles every row; exit status 1, and the lines that differ, where the
                                            # table is not what they compile to: some ten minutes on two cores

Owns which kernel stands for a row, and the table. Must not judge the figures (prism_gen/gates.py does).
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # runs from a checkout, without installation

from prism_gen import gates, rope  # noqa: E402
from prism_gen.compile import Compiler  # noqa: E402
from prism_gen.families import SelectShape, family  # noqa: E402
from prism_gen.fingerprint import code_digest, make_source  # noqa: E402
from prism_gen.jobs import default_jobs  # noqa: E402
from prism_gen.model import RopeSpec, SelectionSpec  # noqa: E402
from prism_gen.render import render, template_root  # noqa: E402
from prism_gen.schedules import ROWS, Row  # noqa: E402
from prism_gen.spec import KernelSpec  # noqa: E402
from prism_gen.toolchain import Toolchain, find_toolchain  # noqa: E402

TABLE = ROOT / "docs" / "kernels.md"
CACHE = ROOT / "generated" / "cache"
# Of a row that serves many: groups of four, as Llama-3.1-8B and Qwen3-8B have; blocks of 64x64 in sub-blocks of 4x8
# tokens, which estimator "auto" derives for SmolLM2-135M.
PREFERRED = {"heads_per_list": 4, "rows_per_block": 16, "columns_per_block": 8}
DIGITS = 8  # of a digest: what differs by accident collides once in four thousand million times
HEAD = """# What each schedule compiles to

Written by `tools/kernel_table.py`. One kernel stands for a row of [`schedules.py`](../prism_gen/schedules.py); its
dtype is bf16. Registers are those at launch: `setmaxnreg` moves them to the warp groups that multiply. Shared memory is
what is known at build time (select's follows the lengths). No kernel spills or has a stack frame; the build refuses one
that does.

*code* is a digest of all that the kernel is compiled from except tool versions; comments play no part. The same code
and tools give the same figures. CI holds every digest (`tests/unit/test_kernel_table.py`) and compiles a sample of the
rows, each family at head_dim 64 and 128 (`tests/compile/test_compile.py`); `tools/kernel_table.py --check` compiles
them all.

"""
_LINE = re.compile(rf"^\| [^|]+ \| [^|]+ \| ([0-9a-f]{{{DIGITS}}}) \| (.+) \|$", re.MULTILINE)


def representative(row: Row) -> KernelSpec:
    """One kernel of the row: bf16, preferred or else first values, half-split bands by the paper's fractions."""
    facts: dict[str, Any] = {
        name: PREFERRED[name] if PREFERRED.get(name) in values else values[0] for name, values in row.facts.items()
    }
    head_dim = int(facts["head_dim"])
    split = rope.bands(RopeSpec(rotary_dim=head_dim), head_dim, SelectionSpec(), block_size=128)
    derived: dict[str, Any] = {
        "high_dims": tuple(split.high_dims),
        "low_dims": tuple(split.low_dims),
        "rotary_dim": head_dim,
        "interleaved": False,
    }
    problem = family(row.family).problem
    facts.update({name: value for name, value in derived.items() if name in problem.__struct_fields__})
    return KernelSpec(family=row.family, arch=row.arch, problem=problem(**facts), schedule=row.schedule)


def digest(spec: KernelSpec) -> str:
    """What the table calls code."""
    root = template_root()
    return code_digest(spec, render(spec, root), root=root)[:DIGITS]


def figures(*, registers: int, smem_bytes: int, spill_bytes: int, instructions: Mapping[str, int]) -> str:
    """What the table says of a compiled kernel."""
    return " | ".join(map(str, (registers, smem_bytes, spill_bytes, instructions.get("HGMMA", 0))))


def known_figures(text: str) -> dict[str, str]:
    """Digest -> figures, of the page as it was written."""
    return dict(_LINE.findall(text))


def versions(toolchain: Toolchain) -> str:
    """The page's line of what compiled it; the host's compiler has no part in the figures."""
    named = ", ".join(f"{name} {version}" for name, version in toolchain.versions.items() if name != "g++")
    return f"Compiled with {named}."


def page(compiled_with: str, known: Mapping[str, str]) -> str:
    """The whole page. known: digest -> figures of every row's kernel."""
    specs = [representative(row) for row in ROWS]
    shapes = {shape: f"S{number}" for number, shape in enumerate(_select_shapes(specs), start=1)}
    lines = [
        HEAD + compiled_with,
        "",
        *_header("kernel", "schedule", "code", "registers", "shared memory, bytes", "spills", "HGMMA"),
    ]
    for spec in specs:
        code = digest(spec)
        lines.append(f"| {spec.family} {spec.problem.label()} | {_schedule(spec, shapes)} | {code} | {known[code]} |")
    fields = SelectShape.__struct_fields__
    lines += ["", "Shapes of select, for rows of up to 32 * words key blocks:", "", *_header("shape", *fields)]
    for shape, name in shapes.items():
        lines.append(f"| {name} | " + " | ".join(str(getattr(shape, field)) for field in fields) + " |")
    return "\n".join(lines) + "\n"


def _header(*names: str) -> tuple[str, str]:
    return "| " + " | ".join(names) + " |", "|" + "---|" * len(names)


def _select_shapes(specs: Iterable[KernelSpec]) -> list[SelectShape]:
    """Each shape of the select schedules once, by what it is for."""
    values = [getattr(spec.schedule, name) for spec in specs for name in spec.schedule.__struct_fields__]
    listed = [shape for value in values for shape in (value if isinstance(value, tuple) else (value,))]
    found = dict.fromkeys(shape for shape in listed if isinstance(shape, SelectShape))
    return sorted(found, key=lambda shape: tuple(getattr(shape, name) for name in SelectShape.__struct_fields__))


def _schedule(spec: KernelSpec, shapes: Mapping[SelectShape, str]) -> str:
    """Name and value of each field; shapes by their names."""

    def words(value: Any) -> str:
        if isinstance(value, tuple):
            return " ".join(map(words, value))
        return shapes[value] if isinstance(value, SelectShape) else str(value)

    return ", ".join(f"{name} {words(getattr(spec.schedule, name))}" for name in spec.schedule.__struct_fields__)


def compile_rows(toolchain: Toolchain, specs: Iterable[KernelSpec], *, jobs: int) -> dict[str, str]:
    """Digest -> figures. Compiles what the cache lacks. Raises: CompileError as Compiler.compile_all does."""
    root = template_root()
    sources = [make_source(spec, render(spec, root), root=root, toolchain=toolchain) for spec in specs]
    compiler = Compiler(toolchain=toolchain, cache=CACHE, root=root)
    artifacts = compiler.compile_all(sources, jobs=jobs, report=lambda event: print(event, file=sys.stderr))
    return {
        digest(source.spec): figures(
            registers=artifact.figures.registers,
            smem_bytes=gates.smem_bytes(source.spec, artifact.figures),
            spill_bytes=artifact.figures.spill_bytes,
            instructions=artifact.figures.instructions,
        )
        for source, artifact in zip(sources, artifacts, strict=True)
    }


def main() -> int:
    """Writes or checks the table; returns the exit status."""
    parser = argparse.ArgumentParser("kernel_table", description="What each schedule row compiles to.")
    parser.add_argument("--check", action="store_true", help="compile every row and compare with docs/kernels.md")
    parser.add_argument("--jobs", type=int, default=default_jobs(), help="compilations at a time")
    options = parser.parse_args()
    toolchain = find_toolchain(nvcc=None, cache=CACHE)
    old = TABLE.read_text(encoding="utf-8") if TABLE.exists() else ""
    kept = known_figures(old) if versions(toolchain) in old.splitlines() and not options.check else {}
    changed = [spec for spec in map(representative, ROWS) if digest(spec) not in kept]
    text = page(versions(toolchain), kept | compile_rows(toolchain, changed, jobs=options.jobs))
    if not options.check:
        TABLE.write_text(text, encoding="utf-8")
        return 0
    sys.stdout.writelines(
        difflib.unified_diff(old.splitlines(True), text.splitlines(True), "docs/kernels.md", "compiled")
    )
    return int(old != text)


if __name__ == "__main__":
    raise SystemExit(main())
