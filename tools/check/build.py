"""What a bundle says of itself, digests, specs, registers, spills, instructions: the section `build`.

Owns the limits on a compiled kernel that a GPU run must not start without. Must not launch kernels.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from prism_gen.families import family
from prism_gen.manifest import KernelEntry
from prism_gen.runtime.load import Bundle, load_bundle
from prism_gen.verify.report import Findings, Report

TENSOR_CORE_OPCODE = {"sm90": "HGMMA"}


def check_entry(bundle: Bundle, entry: KernelEntry) -> Findings:
    """Opens the library, which compares its embedded spec, and judges the figures of the build."""
    found = Findings()
    bundle.module(entry)
    found.figures.update(
        key=entry.key,
        registers=entry.registers,
        smem_bytes=entry.smem_bytes,
        stack_bytes=entry.stack_bytes,
        spill_bytes=entry.spill_bytes,
        instructions=entry.instructions,
    )
    found.require(entry.registers > 0, "no register count was recorded")
    found.require(entry.spill_bytes == 0, f"{entry.spill_bytes} bytes of registers spill")
    opcode = TENSOR_CORE_OPCODE.get(entry.arch)
    if opcode and family(entry.spec.family).tensor_cores:
        count = sum(n for name, n in entry.instructions.items() if name.startswith(opcode))
        found.require(count > 0, f"no {opcode} instruction")
    return found


def run(bundles: tuple[Path, ...], report: Report) -> None:
    """Every kernel of every bundle; the digests are checked before any library is opened."""
    for path in bundles:
        bundle: list[Bundle] = []

        def load(path: Path = path, bundle: list[Bundle] = bundle) -> Findings:
            bundle.append(load_bundle(path))
            found = Findings()
            manifest = bundle[0].manifest
            found.figures.update(kernels=len(manifest.kernels), toolchain=manifest.toolchain)
            found.figures.update(commit=manifest.provenance.commit, flags=list(manifest.flags))
            found.require(bool(manifest.kernels), "the bundle is empty")
            return found

        report.case("bundle", str(path), load, show=True)
        for entry in bundle[0].manifest.kernels if bundle else ():
            report.case(entry.name, "build", partial(check_entry, bundle[0], entry), show=True)
