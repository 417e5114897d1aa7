"""What a compiled kernel must prove, read from ptxas's words and its SASS; no GPU needed.

A zero exit status proves nothing: CuTe guards instructions by macro, so a wrong target compiles into a kernel that
traps or does nothing. Owns parsing and the verdict. Must not run a process (compile.py does).
"""

from __future__ import annotations

import re
from collections import Counter

from prism_gen.arch import arch
from prism_gen.families import family
from prism_gen.spec import KernelSpec, Struct

LOCAL_MEMORY_SASS = ("LDL", "STL")
# ptxas keeps a kernel that it could not schedule as written: setmaxnreg ignored, wgmma serialised, or a fence put back.
_PTXAS_COMPLAINT = re.compile(r"^.*(?:Potential Performance Loss|\(C75(?:04|08|09|19|20)\)).*$", re.MULTILINE)
# "        /*0050*/              @!P0 BRA 0x1190 ;": address, an optional predicate, the opcode with its modifiers.
_SASS_OPCODE = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", re.MULTILINE)


class Figures(Struct, frozen=True, kw_only=True):
    """What was measured on one library: the most of any entry point, except spills, which are summed.

    static_smem_bytes: as ptxas counts, without the arch's reserve. spill_bytes: stores and loads.
    instructions: opcode -> count, for the opcodes that gates look at.
    """

    registers: int
    static_smem_bytes: int
    stack_bytes: int
    spill_bytes: int
    instructions: dict[str, int]


def measure(spec: KernelSpec, ptxas_log: str, sass: str) -> Figures:
    """Figures from the output of `nvcc -Xptxas=-v` and of `cuobjdump -sass`."""

    def numbers(pattern: str) -> list[int]:
        return [int(number) for number in re.findall(pattern, ptxas_log)]

    opcodes = Counter(_SASS_OPCODE.findall(sass))
    return Figures(
        registers=max(numbers(r"Used (\d+) registers"), default=0),
        static_smem_bytes=max(numbers(r"(\d+) bytes smem"), default=0),
        stack_bytes=max(numbers(r"(\d+) bytes stack frame"), default=0),
        # Only in the properties of a function: -warn-spills says the same again.
        spill_bytes=sum(numbers(r"stack frame, (\d+) bytes spill stores"))
        + sum(numbers(r"stack frame, \d+ bytes spill stores, (\d+) bytes spill loads")),
        instructions={opcode: opcodes[opcode] for opcode in _watched(spec)},
    )


def _watched(spec: KernelSpec) -> tuple[str, ...]:
    """The opcodes that gates look at."""
    return (*arch(spec.arch).tensor_core_sass, *LOCAL_MEMORY_SASS)


def smem_bytes(spec: KernelSpec, figures: Figures) -> int:
    """Shared memory of one CTA that is known at build time: static and dynamic."""
    return figures.static_smem_bytes + family(spec.family).dynamic_smem_bytes(spec)


def failures(spec: KernelSpec, figures: Figures, ptxas_log: str) -> list[str]:
    """Every gate that the kernel does not pass, in words; empty if it may be published."""
    if uncounted := [opcode for opcode in _watched(spec) if opcode not in figures.instructions]:
        return [f"{', '.join(uncounted)} instructions were not counted: measured before a gate looked at them"]
    found = [line.strip() for line in _PTXAS_COMPLAINT.findall(ptxas_log)]
    if figures.registers == 0:
        found.append("ptxas reported no kernel: the template instantiates none for this architecture")
    if figures.spill_bytes:
        found.append(f"{figures.spill_bytes} bytes of register spills; expected 0")
    if figures.stack_bytes:
        found.append(f"{figures.stack_bytes} bytes of stack frame; expected 0 (an array indexed at run time?)")
    for opcode in LOCAL_MEMORY_SASS:
        if figures.instructions[opcode]:
            found.append(f"{figures.instructions[opcode]} {opcode} instructions (local memory); expected 0")
    row = arch(spec.arch)
    if family(spec.family).tensor_cores:
        missing = [opcode for opcode in row.tensor_core_sass if not figures.instructions[opcode]]
        found += [f"no {opcode} instruction in the SASS; was it compiled for {row.gencode}?" for opcode in missing]
    total_bytes = smem_bytes(spec, figures)
    if total_bytes > row.smem_limit_bytes:
        found.append(f"{total_bytes} bytes of shared memory; {spec.arch} gives a CTA {row.smem_limit_bytes}")
    return found
