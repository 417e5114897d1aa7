"""What this machine has and lacks, for building and for running, with the command that fixes each.

Owns the list of what is looked at. Must not import torch, ask a GPU, or raise where something is missing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from pathlib import Path

from prism_gen.errors import ToolchainError
from prism_gen.spec import Struct
from prism_gen.toolchain import ProbeCache, find_cuobjdump, find_cutlass, find_cxx, find_nvcc, find_tvm_ffi

RUNTIME_PACKAGES = ("torch", "safetensors", "matplotlib")  # of the extra `runtime`
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/gpus")  # the driver's own files: asking CUDA would need torch


class Finding(Struct, frozen=True, kw_only=True):
    """One line of `doctor`. detail: version and path where ok, else what is missing; fix: the command that helps."""

    name: str
    ok: bool
    detail: str
    fix: str = ""


def build_findings(*, nvcc: Path | None, cache: Path) -> list[Finding]:
    """One finding per part of the toolchain. nvcc, cache: as for find_toolchain."""
    probes = ProbeCache(cache)
    checks: dict[str, Callable[[], tuple[object, ...]]] = {
        "nvcc": lambda: find_nvcc(nvcc, probes)[::2],
        "g++": lambda: find_cxx(probes),
        "cuobjdump": lambda: (find_cuobjdump(),),
        "CUTLASS headers": find_cutlass,
        "tvm-ffi headers": find_tvm_ffi,
    }
    findings = []
    for name, check in checks.items():
        try:
            findings.append(Finding(name=name, ok=True, detail="  ".join(str(part) for part in reversed(check()))))
        except ToolchainError as error:
            findings.append(Finding(name=name, ok=False, detail=error.asked, fix=error.fix))
    return findings


def run_findings() -> list[Finding]:
    """One finding per package of the extra `runtime`, and one for the GPU."""
    return [*map(_package_finding, RUNTIME_PACKAGES), _gpu_finding()]


def _package_finding(name: str) -> Finding:
    if importlib.util.find_spec(name):
        return Finding(name=name, ok=True, detail=importlib.metadata.version(name))
    index = "   # choose the build for your CUDA: https://pytorch.org/get-started" if name == "torch" else ""
    return Finding(name=name, ok=False, detail="not installed", fix=f"pip install {name}{index}")


def _gpu_finding() -> Finding:
    lines = [line for gpu in sorted(_NVIDIA_DRIVER.glob("*/information")) for line in gpu.read_text().splitlines()]
    names = [line.split(":", 1)[1].strip() for line in lines if "Model:" in line]
    if names:
        return Finding(name="GPU", ok=True, detail=", ".join(names))
    fix = "use --backend reference, or copy the bundle to a machine with an sm90 GPU"
    return Finding(name="GPU", ok=False, detail="no NVIDIA driver", fix=fix)
