"""What a library is compiled from, and the digest of all of it.

Owns nvcc's flags and the rule that file times play no part. Must not run a process (compile.py does).
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import msgspec

from prism_gen.arch import arch
from prism_gen.families import family
from prism_gen.files import sha256
from prism_gen.spec import KernelSpec, Struct
from prism_gen.toolchain import Toolchain

FLAGS = (
    "-std=c++17",
    "-O3",
    "-DNDEBUG",
    "--expt-relaxed-constexpr",
    "--use_fast_math",
    "-lineinfo",
    # Hidden symbols and no unique ones: two kernels in one process share no statics. Host -O1 saves 11 s a kernel.
    "-Xcompiler=-fPIC,-fvisibility=hidden,-fno-gnu-unique,-O1",
    "-Xptxas=-v,-warn-spills",
    "-cudart=static",
    "-Xlinker=--exclude-libs,ALL",
    "-shared",
)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^">]+)[">]', re.MULTILINE)


class Source(Struct, frozen=True, kw_only=True):
    """One rendered kernel. digest: of everything it is compiled from."""

    spec: KernelSpec
    text: str
    digest: str


def flags(arch_name: str) -> tuple[str, ...]:
    """nvcc's flags for one architecture, without paths."""
    return (f"-gencode={arch(arch_name).gencode}", *FLAGS)


def header_closure(text: str, root: Path) -> dict[str, str]:
    """Path below `root` -> SHA-256, of every header of ours that `text` includes, directly or not.

    Headers that are not below `root` are CUTLASS's, tvm-ffi's or the compiler's; their versions stand for them.
    """
    root = root.resolve()
    found: dict[str, str] = {}
    pending = [(text, root)]
    while pending:
        body, folder = pending.pop()
        for name in _INCLUDE.findall(body):
            path = next((path.resolve() for path in (folder / name, root / name) if path.is_file()), None)
            if path is None or not path.is_relative_to(root) or str(path.relative_to(root)) in found:
                continue
            data = path.read_bytes()
            found[str(path.relative_to(root))] = hashlib.sha256(data).hexdigest()
            pending.append((data.decode(), path.parent))
    return found


def template_digest(spec: KernelSpec, text: str, *, root: Path) -> str:
    """Digest of what every schedule of a family is rendered and compiled from: template, headers below `root`, flags.

    text: any rendered source of the family. Tool versions are left out: a measurement outlives a compiler's patch.
    """
    inputs = {
        "template": sha256(root / family(spec.family).template),
        "headers": header_closure(text, root),
        "flags": flags(spec.arch),
    }
    return hashlib.sha256(msgspec.json.encode(inputs, order="sorted")).hexdigest()


def _without_comments(text: str) -> str:
    """C++ without comments and empty lines. The sources have no string with the mark of a comment in it."""
    return "\n".join(line.rstrip() for line in _COMMENT.sub("", text).splitlines() if line.strip())


def code_digest(spec: KernelSpec, text: str, *, root: Path) -> str:
    """Digest of what one compiler makes a kernel of: spec, source, headers below `root`, flags; comments play no part.

    Kernels of the same code digest and tool versions have the same instructions, and so the same registers and counts.
    """
    headers = {
        name: _without_comments((root / name).read_text(encoding="utf-8")) for name in header_closure(text, root)
    }
    inputs = {
        "spec": spec.to_json(),
        "source": _without_comments(text),
        "headers": headers,
        "flags": flags(spec.arch),
    }
    return hashlib.sha256(msgspec.json.encode(inputs, order="sorted")).hexdigest()


def make_source(spec: KernelSpec, text: str, *, root: Path, toolchain: Toolchain) -> Source:
    """The kernel with the digest of its spec, source, headers below `root`, flags and tool versions."""
    inputs = {
        "spec": spec.to_json(),
        "source": text,
        "headers": header_closure(text, root),
        "flags": flags(spec.arch),
        "versions": toolchain.versions,
    }
    digest = hashlib.sha256(msgspec.json.encode(inputs, order="sorted")).hexdigest()
    return Source(spec=spec, text=text, digest=digest)
