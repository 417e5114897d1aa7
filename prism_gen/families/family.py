"""What a kernel family is: the facts that render, compile and the manifest need of it.

Owns the Family record and the band arithmetic that families share. Must not name a family.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from prism_gen.errors import UnsupportedError
from prism_gen.spec import KernelSpec, Struct

# Kernels move 8 two-byte elements at a time (one 16-byte load), so a band is a whole number of 8-dim chunks.
CHUNK_DIMS = 8


class Family(NamedTuple):
    """One kernel family.

    template: path below templates/. context: the template's own keys. dynamic_smem_bytes: shared memory asked
    for at launch, known at build time (0 where it depends on run-time lengths). tensor_cores: whether its
    SASS must hold the arch's tensor-core instructions.
    """

    name: str
    problem: type[Struct]
    schedule: type[Struct]
    template: str
    context: Callable[[KernelSpec], dict[str, Any]]
    dynamic_smem_bytes: Callable[[KernelSpec], int]
    tensor_cores: bool


def no_dynamic_smem(_spec: KernelSpec) -> int:
    """0: the family asks for no shared memory whose size is known at build time."""
    return 0


def chunks(dims: tuple[int, ...], head_dim: int, band: str) -> list[int]:
    """Numbers of the 8-dim chunks that make up a band; chunk c is dims 8c .. 8c+7.

    Raises: UnsupportedError where the band is empty, repeats a dim, leaves the head, or splits a chunk.
    """
    numbers = sorted({dim // CHUNK_DIMS for dim in dims})
    covered = [CHUNK_DIMS * number + offset for number in numbers for offset in range(CHUNK_DIMS)]
    if not covered or sorted(dims) != covered or covered[0] < 0 or covered[-1] >= head_dim:
        raise UnsupportedError(
            f"the {band} band {list(dims)} is not made of whole {CHUNK_DIMS}-dim chunks of head_dim {head_dim}",
            fix=f"choose {band}_freq_dim as a multiple of {2 * CHUNK_DIMS} (prism.{band}_freq_dim in the config)",
        )
    return numbers
