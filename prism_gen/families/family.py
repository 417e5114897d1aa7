"""What a kernel family is: the facts that render, compile and the manifest need of it.

Owns the Family record. Must not name a family.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from prism_gen.spec import KernelSpec, Struct


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
