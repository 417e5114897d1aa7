"""GPU architectures that kernels are compiled for: one row each.

Owns the row table. Must not query a GPU: building happens on machines that have none.
"""

from __future__ import annotations

from typing import NamedTuple

from prism_gen.errors import UnsupportedError


class Arch(NamedTuple):
    """One architecture.

    gencode: nvcc's -gencode value. capability: (major, minor) of the devices that run it.
    smem_limit_bytes: shared memory one CTA may use. template_dir: folder of the specialised headers.
    tensor_core_sass: instructions that every kernel built for this arch's tensor cores must hold. CuTe
    guards them by macro, so a wrong target compiles without an error into a kernel that traps.
    """

    name: str
    gencode: str
    capability: tuple[int, int]
    smem_limit_bytes: int
    template_dir: str
    tensor_core_sass: tuple[str, ...]


ARCHS: dict[str, Arch] = {
    row.name: row
    for row in (
        Arch(
            name="sm90",
            # The `a` is what allows wgmma and setmaxnreg; -arch=sm_90a would embed plain sm_90 PTX as well.
            gencode="arch=compute_90a,code=sm_90a",
            capability=(9, 0),
            # 228 KiB an SM less 1 KiB that the system keeps per CTA (CUDA C++ Programming Guide, table of 9.0).
            smem_limit_bytes=227 * 1024,
            template_dir="sm90",
            tensor_core_sass=("HGMMA", "UTMALDG", "USETMAXREG"),
        ),
    )
}


def arch(name: str) -> Arch:
    """The row called `name`. Raises: UnsupportedError if there is none."""
    if name not in ARCHS:
        raise UnsupportedError(
            f"no architecture {name!r}",
            exists=", ".join(ARCHS),
            fix="choose one of these, or add a row to prism_gen/arch.py",
        )
    return ARCHS[name]
