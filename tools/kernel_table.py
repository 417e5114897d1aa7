"""Writes docs/kernels.md, what each schedule row compiles to; run it after a change to a row or template.

    python tools/kernel_table.py            # compiles what the cache lacks, about 25 s a kernel and core
    python tools/kernel_table.py --check    # exit status 1, and the lines that differ, where the table is out of date

Owns which kernel stands for a row, and the table. Must not judge the figures (prism_gen/gates.py does).
"""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # runs from a checkout, without installation

from prism_gen import gates, rope  # noqa: E402
from prism_gen.compile import Compiler  # noqa: E402
from prism_gen.families import family  # noqa: E402
from prism_gen.fingerprint import make_source  # noqa: E402
from prism_gen.jobs import default_jobs  # noqa: E402
from prism_gen.model import RopeSpec, SelectionSpec  # noqa: E402
from prism_gen.render import render, template_root  # noqa: E402
from prism_gen.schedules import ROWS, Row  # noqa: E402
from prism_gen.spec import KernelSpec  # noqa: E402
from prism_gen.toolchain import Toolchain, find_toolchain  # noqa: E402

TABLE = ROOT / "docs" / "kernels.md"
CACHE = ROOT / "generated" / "cache"
HEADS_PER_LIST = 4  # of a row that serves many: Llama-3.1-8B and Qwen3-8B have groups of four
HEAD = """# What each schedule compiles to

Written by `tools/kernel_table.py`, checked by `tests/compile/test_kernel_table.py`. One kernel stands for a row of
[`schedules.py`](../prism_gen/schedules.py); its dtype is bf16. Registers are those at launch: `setmaxnreg` moves them
to the warp groups that multiply. Shared memory is what is known at build time (select's follows the lengths). No kernel
spills or has a stack frame; the build refuses one that does.

"""


def representative(row: Row) -> KernelSpec:
    """One kernel of the row: bf16, the first value of every other fact, half-split bands by the paper's fractions."""
    facts: dict[str, Any] = {name: values[0] for name, values in row.facts.items()}
    if HEADS_PER_LIST in row.facts.get("heads_per_list", ()):
        facts["heads_per_list"] = HEADS_PER_LIST
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


def table(toolchain: Toolchain, *, jobs: int) -> str:
    """The whole page. Compiles what the cache lacks. Raises: CompileError as Compiler.compile_all does."""
    root = template_root()
    specs = [representative(row) for row in ROWS]
    sources = [make_source(spec, render(spec, root), root=root, toolchain=toolchain) for spec in specs]
    compiler = Compiler(toolchain=toolchain, cache=CACHE, root=root)
    artifacts = compiler.compile_all(sources, jobs=jobs, report=lambda event: print(event, file=sys.stderr))
    versions = ", ".join(f"{name} {version}" for name, version in toolchain.versions.items() if name != "g++")
    lines = [
        f"Compiled with {versions}.\n",
        "| kernel | schedule | registers | shared memory, bytes | spills | HGMMA |",
        "|---|---|---|---|---|---|",
    ]
    for spec, artifact in zip(specs, artifacts, strict=True):
        figures = artifact.figures
        schedule = ", ".join(f"{name} {getattr(spec.schedule, name)}" for name in spec.schedule.__struct_fields__)
        cells = (
            f"{spec.family} {spec.problem.label()}",
            schedule,
            figures.registers,
            gates.smem_bytes(spec, figures),
            figures.spill_bytes,
            figures.instructions.get("HGMMA", 0),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return HEAD + "\n".join(lines) + "\n"


def main() -> int:
    """Writes or checks the table; returns the exit status."""
    parser = argparse.ArgumentParser("kernel_table", description="What each schedule row compiles to.")
    parser.add_argument("--check", action="store_true", help="compare with docs/kernels.md instead of writing it")
    parser.add_argument("--jobs", type=int, default=default_jobs(), help="compilations at a time")
    options = parser.parse_args()
    text = table(find_toolchain(nvcc=None, cache=CACHE), jobs=options.jobs)
    if not options.check:
        TABLE.write_text(text, encoding="utf-8")
        return 0
    old = TABLE.read_text(encoding="utf-8") if TABLE.exists() else ""
    sys.stdout.writelines(
        difflib.unified_diff(old.splitlines(True), text.splitlines(True), "docs/kernels.md", "compiled")
    )
    return int(old != text)


if __name__ == "__main__":
    raise SystemExit(main())
