"""Kernels under check, each as its spec and a function with the raw signature of templates/README.md.

Owns what a kernel under check is, and the kernels of a bundle (reference_kernels.py has the plain-torch ones). Must not
judge answers or make inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prism_gen import rope
from prism_gen.families import PoolProblem, RotateProblem, SelectProblem
from prism_gen.manifest import KernelEntry
from prism_gen.runtime.load import Bundle, load_bundle
from prism_gen.spec import KernelSpec

TORCH_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

Launch = Callable[..., object]


@dataclass(frozen=True)
class Kernel:
    """One kernel: its spec and raw export. scratch_floats: select's and score's.

    alone, sub_blocks: what rotate exports besides, rotate_only and rotate_sub_blocks.
    """

    spec: KernelSpec
    launch: Launch
    scratch_floats: Callable[..., int] | None = None
    alone: Launch | None = None
    sub_blocks: Launch | None = None

    @property
    def name(self) -> str:
        """For people and records: family and problem."""
        return kernel_name(self.spec)

    @property
    def problem(self) -> Any:
        """The spec's typed Problem."""
        return self.spec.problem

    @property
    def dtype(self) -> torch.dtype:
        """Element type of q, k, v; select's means come from either, so it takes bf16 inputs."""
        return TORCH_DTYPES[getattr(self.problem, "dtype", "bf16")]


def kernel_name(spec: KernelSpec) -> str:
    """What records call a kernel: family and problem."""
    return f"{spec.family}-{spec.problem.label()}"


def of_family(kernels: list[Kernel], family: str) -> list[Kernel]:
    """The kernels of one family, in the order given."""
    return [kernel for kernel in kernels if kernel.spec.family == family]


def bands_of(problem: PoolProblem | RotateProblem | SelectProblem) -> rope.Bands:
    """The two bands of a pool, rotate or select problem."""
    return rope.Bands(problem.high_dims, problem.low_dims)


def bundle_kernels(path: Path) -> list[Kernel]:
    """Every kernel of a bundle, its libraries verified and opened.

    Raises: BundleError as load_bundle and Bundle.module do.
    """
    bundle = load_bundle(path)
    return [bundle_kernel(bundle, entry) for entry in bundle.manifest.kernels]


def bundle_kernel(bundle: Bundle, entry: KernelEntry) -> Kernel:
    """One kernel of a loaded bundle, opened. Raises: BundleError as Bundle.module does."""
    module = bundle.module(entry)
    scratch = module.get_function("scratch_floats") if entry.spec.family in ("select", "score") else None
    launch = module.get_function(entry.spec.family)
    if entry.spec.family != "rotate":
        return Kernel(entry.spec, launch, scratch)
    alone, sub_blocks = (module.get_function(name) for name in ("rotate_only", "rotate_sub_blocks"))
    return Kernel(entry.spec, launch, alone=alone, sub_blocks=sub_blocks)
