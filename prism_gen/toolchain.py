"""Finds what a build needs: nvcc, a host compiler, cuobjdump, the CUTLASS and tvm-ffi headers, and their versions.

Owns the search order and the environment of child processes. Must not compile, and must not import the packages whose
headers it finds (tvm_ffi would import torch).
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from prism_gen.errors import ToolchainError
from prism_gen.files import write_atomic
from prism_gen.spec import Struct

WHEELS_FIX = "pip install 'prism-gen[toolchain]'   # nvcc and cuobjdump from wheels; no CUDA installation needed"
HEADERS_FIX = "pip install 'nvidia-cutlass==4.2.0.0' 'apache-tvm-ffi==0.1.15.post2'"
CXX_FIX = "install a C++17 compiler, e.g. apt-get install g++   (conda install gxx without root)"
# Variables that would change nvcc's output without changing the digest of what it was given.
_HIDDEN_INPUTS = (
    "NVCC_APPEND_FLAGS",
    "NVCC_PREPEND_FLAGS",
    "NVCC_CCBIN",
    "CPATH",
    "C_INCLUDE_PATH",
    "CPLUS_INCLUDE_PATH",
)


class Toolchain(Struct, frozen=True, kw_only=True):
    """Everything a compile uses. versions: tool -> version, hashed into every artifact digest."""

    nvcc: Path
    cxx: Path
    cuobjdump: Path
    cudart_dir: Path
    cutlass_include: Path
    tvm_ffi_include: Path
    versions: dict[str, str]

    def environment(self, scratch: Path) -> dict[str, str]:
        """Environment for a child process: its temporary files go to `scratch`, our tools come first on PATH."""
        inherited = _clean_environment()
        tool_dirs = [str(self.nvcc.parent), str(self.cuobjdump.parent)]
        return {
            **inherited,
            "PATH": os.pathsep.join([*tool_dirs, inherited.get("PATH", "/usr/bin:/bin")]),
            "TMPDIR": str(scratch),
        }


def _clean_environment() -> dict[str, str]:
    """The caller's environment without what would steer a compiler behind our back."""
    return {name: value for name, value in os.environ.items() if name not in _HIDDEN_INPUTS}


class _Probe(Struct, frozen=True, kw_only=True):
    """What a tool printed, and size and mtime of every file that the answer depends on."""

    files: dict[str, tuple[int, int]]
    output: str


class ProbeCache:
    """Answers of tools, kept in a cache folder so that an unchanged second build starts none of them."""

    def __init__(self, cache: Path) -> None:
        self._path = cache / "toolchain.json"
        try:
            self._probes = msgspec.json.decode(self._path.read_bytes(), type=dict[str, _Probe])
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):  # none yet, of another version, damaged: ask again
            self._probes = {}

    def ask(self, command: list[str], depends_on: Callable[[str], list[Path]], *, fix: str) -> str:
        """Output of `command`, from the cache while no file of depends_on(output) changed.

        Raises: ToolchainError, with that fix, where it cannot be run or fails.
        """
        key = " ".join(command)
        known = self._probes.get(key)
        if known and all(_stamp(Path(file)) == stamp for file, stamp in known.files.items()):
            return known.output
        try:
            environment = _clean_environment()
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ToolchainError(f"cannot run {command[0]}: {error}", fix=fix) from None
        if done.returncode != 0:
            words = (done.stderr or done.stdout).strip()[:400]
            raise ToolchainError(f"{key} failed with exit status {done.returncode}: {words}", fix=fix)
        output = done.stdout + done.stderr
        files = {str(file): _stamp(file) for file in [Path(command[0]).resolve(), *depends_on(output)]}
        self._probes[key] = _Probe(files=files, output=output)
        with contextlib.suppress(OSError):  # a read-only cache: `doctor` may look, and `build` says so where it writes
            write_atomic(self._path, msgspec.json.encode(self._probes))
        return output


def _stamp(path: Path) -> tuple[int, int]:
    """(bytes, mtime in ns); (-1, -1) where there is no such file."""
    try:
        stat = path.stat()
    except OSError:
        return (-1, -1)
    return (stat.st_size, stat.st_mtime_ns)


def _wheel_roots() -> list[Path]:
    """CUDA roots inside site-packages/nvidia (cu13 and later), newest first."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    return sorted((root for folder in folders for root in folder.glob("cu[0-9]*")), reverse=True)


def _candidates(tool: str) -> Iterator[Path]:
    """Where `tool` may be, best first: CUDA_HOME, wheels, PATH, /usr/local/cuda."""
    if home := os.environ.get("CUDA_HOME"):
        yield Path(home) / "bin" / tool
    for root in _wheel_roots():
        yield root / "bin" / tool
    if found := shutil.which(tool):
        yield Path(found)
    yield Path("/usr/local/cuda/bin") / tool


def _find_tool(tool: str) -> Path:
    tried = list(dict.fromkeys(_candidates(tool)))
    for path in tried:
        if path.is_file() and os.access(path, os.X_OK):
            return path.absolute()
    raise ToolchainError(f"no {tool} on this machine", exists=f"looked in {', '.join(map(str, tried))}", fix=WHEELS_FIX)


def find_nvcc(explicit: Path | None, probes: ProbeCache) -> tuple[Path, Path, str]:
    """(nvcc, folder of libcudart_static.a, version), e.g. version 13.0.88.

    explicit: the --nvcc option, taken before anything else.
    Raises: ToolchainError where nvcc, a part of it, or the static CUDA runtime is missing.
    """
    nvcc = explicit.absolute() if explicit else _find_tool("nvcc")
    if not (nvcc.is_file() and os.access(nvcc, os.X_OK)):
        raise ToolchainError(f"--nvcc {nvcc} is not an executable file", fix=WHEELS_FIX)
    # nvcc may be a wrapper script; a dry run names the real folder and the version, and starts nothing else.
    dry_run = [str(nvcc), "--dryrun", "-x", "cu", os.devnull, "-c", "-o", os.devnull]
    output = probes.ask(dry_run, lambda text: list(_nvcc_parts(_nvcc_home(text, nvcc))), fix=WHEELS_FIX)
    home = _nvcc_home(output, nvcc)
    for part in _nvcc_parts(home):
        if not part.exists():
            raise ToolchainError(f"{nvcc} is incomplete: no {part}", fix=WHEELS_FIX)
    numbers = [re.search(rf"__CUDACC_VER_{name}__=(\d+)", output) for name in ("MAJOR", "MINOR", "BUILD")]
    version = ".".join(number[1] for number in numbers if number)
    for folder in (home.parent / "lib", home.parent / "lib64", *home.parent.glob("targets/*/lib")):
        if (folder / "libcudart_static.a").is_file():
            return nvcc, folder, version
    raise ToolchainError(f"{nvcc} has no libcudart_static.a beside it", fix=WHEELS_FIX)


def _nvcc_home(dry_run_output: str, nvcc: Path) -> Path:
    found = re.search(r"^#\$ _HERE_=(.+)$", dry_run_output, re.MULTILINE)
    return Path(found[1].strip()) if found else nvcc.resolve().parent


def _nvcc_parts(home: Path) -> Iterator[Path]:
    """The programs whose change changes the machine code."""
    yield from (home / "nvcc", home / "ptxas", home.parent / "nvvm" / "bin" / "cicc")


def find_cxx(probes: ProbeCache) -> tuple[Path, str]:
    """(host C++ compiler, version): $NVCC_CCBIN or g++. Raises: ToolchainError if there is none."""
    wanted = os.environ.get("NVCC_CCBIN", "g++")
    found = shutil.which(wanted)
    if not found:
        raise ToolchainError(f"no {wanted} on PATH; nvcc needs a host compiler", fix=CXX_FIX)
    path = Path(found).absolute()
    return path, probes.ask([str(path), "-dumpfullversion"], lambda _: [], fix=CXX_FIX).strip()


def find_cuobjdump() -> Path:
    """cuobjdump with an nvdisasm that it can start. Raises: ToolchainError if either is missing."""
    path = _find_tool("cuobjdump")
    if not ((path.parent / "nvdisasm").is_file() or shutil.which("nvdisasm")):
        raise ToolchainError(f"{path} has no nvdisasm beside it; the SASS of kernels cannot be checked", fix=WHEELS_FIX)
    return path


def _find_headers(package: str, distribution: str, inside: str, probe_file: str) -> tuple[Path, str]:
    """(include folder, version) of an installed package that is found without importing it."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        include = Path(folder) / inside
        if (include / probe_file).is_file():
            return include, importlib.metadata.version(distribution)
    raise ToolchainError(f"no headers of {distribution} ({probe_file})", fix=HEADERS_FIX)


def find_cutlass() -> tuple[Path, str]:
    """(CUTLASS include folder, wheel version). Raises: ToolchainError if not installed."""
    return _find_headers("cutlass_library", "nvidia-cutlass", "source/include", "cute/tensor.hpp")


def find_tvm_ffi() -> tuple[Path, str]:
    """(tvm-ffi include folder, wheel version). Raises: ToolchainError if not installed."""
    return _find_headers("tvm_ffi", "apache-tvm-ffi", "include", "tvm/ffi/function.h")


def find_toolchain(*, nvcc: Path | None, cache: Path) -> Toolchain:
    """Everything a build needs. cache: folder that remembers versions between builds.

    Raises: ToolchainError naming the first part that is missing, with the command that installs it.
    """
    probes = ProbeCache(cache)
    nvcc_path, cudart_dir, nvcc_version = find_nvcc(nvcc, probes)
    cxx, cxx_version = find_cxx(probes)
    cuobjdump = find_cuobjdump()
    cutlass, cutlass_version = find_cutlass()
    tvm_ffi, tvm_ffi_version = find_tvm_ffi()
    return Toolchain(
        nvcc=nvcc_path,
        cxx=cxx,
        cuobjdump=cuobjdump,
        cudart_dir=cudart_dir,
        cutlass_include=cutlass,
        tvm_ffi_include=tvm_ffi,
        versions={"nvcc": nvcc_version, "g++": cxx_version, "cutlass": cutlass_version, "tvm-ffi": tvm_ffi_version},
    )
