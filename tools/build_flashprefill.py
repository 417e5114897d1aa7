"""Compiles tools/flashprefill.cu against a checkout of FlashPrefill V2: the library of that peer.

    python tools/build_flashprefill.py --checkout ~/FlashPrefillv2 --out generated/flashprefill2.so

Takes about 90 s and 2 GB on one core; the result is 1.4 MB and runs wherever a prism-gen bundle does.
Owns its nvcc command. Must not run the kernel.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # runs from a checkout, without installation

from prism_gen.toolchain import ProbeCache, find_cxx, find_nvcc, find_tvm_ffi  # noqa: E402

ADAPTER = ROOT / "tools" / "flashprefill.cu"
# The checkout's setup.py and what torch's CUDAExtension adds, less what only its other kernels read.
FLAGS = (
    *("-gencode", "arch=compute_90a,code=sm_90a", "-std=c++17", "-O3", "--use_fast_math", "--expt-relaxed-constexpr"),
    *("-DNDEBUG", "-DCUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED", "-DCUTLASS_ENABLE_GDC_FOR_SM90", "-lineinfo"),
    "-DCUTLASS_DEBUG_TRACE_LEVEL=0",
    *("-Xcompiler", "-fPIC", "-shared"),
)


def command(nvcc: Path, cxx: Path, cudart_dir: Path, checkout: Path, out: Path) -> list[str]:
    """The nvcc command line; the checkout brings its own CUTLASS."""
    headers = [checkout / "flashprefill_ops", checkout / "csrc" / "cutlass" / "include"]
    return [
        *(str(nvcc), *FLAGS, f"-ccbin={cxx}", f"-L{cudart_dir}"),
        *(f"-I{folder.resolve()}" for folder in headers),
        *("-isystem", str(find_tvm_ffi()[0]), "-o", str(out), str(ADAPTER)),
    ]


def main() -> int:
    """The exit status of nvcc."""
    parser = argparse.ArgumentParser(description="Library of the peer FlashPrefill V2.")
    parser.add_argument("--checkout", type=Path, required=True, help="of github.com/qhfan/FlashPrefillv2")
    parser.add_argument("--out", type=Path, required=True, help="the shared library, replaced")
    given = parser.parse_args()
    if not (given.checkout / "flashprefill_ops" / "flash_fwd_launch_template.h").is_file():
        parser.error(f"{given.checkout} is no checkout of FlashPrefill V2: no flashprefill_ops/ in it")
    with tempfile.TemporaryDirectory() as scratch:
        probes = ProbeCache(Path(scratch))
        nvcc, cudart_dir, _ = find_nvcc(None, probes)
        cxx, _ = find_cxx(probes)
        given.out.parent.mkdir(parents=True, exist_ok=True)
        return subprocess.run(command(nvcc, cxx, cudart_dir, given.checkout, given.out), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
