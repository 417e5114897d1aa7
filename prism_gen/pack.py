"""Bundles -> one file to ship: a wheel that pip installs, or a tar.

Owns what goes into it and its platform tag. Needs no compiler, torch or GPU; writes equal bytes for equal bundles.
"""

from __future__ import annotations

import base64
import hashlib
import io
import platform
import re
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from prism_gen import __version__
from prism_gen.errors import BundleError, ConfigError
from prism_gen.files import sha256, write_atomic
from prism_gen.manifest import MANIFEST_NAME, KernelEntry, Manifest, encode_manifest, read_manifest
from prism_gen.package_names import BUNDLE_FOLDER, ENTRY_POINTS, bundle_name, check_name, distribution, module

Format = Literal["wheel", "tar"]
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can say: no time of day makes two wheels differ
_GLIBC = re.compile(rb"GLIBC_2\.(\d+)")
_FILE_MODE = 0o644 << 16
# What the runtime needs beside torch, which is the user's own build.
REQUIREMENTS = (f"prism-gen>={__version__}",)


def pack(bundles: Sequence[Path], *, out: Path, form: Format, name: str | None) -> Path:
    """Writes bundles of the same models, of one arch or several, as one file in the folder `out`; its path.

    name: of the package, default that of the only model.
    Raises: BundleError for a bundle that is not whole; ConfigError where they do not belong together or need a name.
    """
    manifest, libraries = join(bundles)
    if name is None:
        if len(manifest.models) != 1:
            raise ConfigError("a bundle of several models needs a name", fix="add --name NAME")
        name = bundle_name(manifest.models[0].name)
    check_name(name)
    files = {f"{BUNDLE_FOLDER}/{MANIFEST_NAME}": encode_manifest(manifest)}
    files |= {f"{BUNDLE_FOLDER}/{path}": data for path, data in libraries.items()}
    tag = platform_tag(libraries.values())
    version = __version__
    if form == "wheel":
        path = out / f"{module(name)}-{version}-py3-none-{tag}.whl"
        write_atomic(path, _wheel(name, version, tag, files))
    else:
        path = out / f"{distribution(name)}-{version}-{tag}.tar.xz"
        write_atomic(path, _tar(f"{distribution(name)}-{version}", files))
    return path


def join(bundles: Sequence[Path]) -> tuple[Manifest, dict[str, bytes]]:
    """(the manifest of all kernels, path below the bundle -> library). Raises: as pack does."""
    manifests = [read_manifest(bundle) for bundle in bundles]
    first = manifests[0]
    for bundle, manifest in zip(bundles[1:], manifests[1:], strict=True):
        if manifest.models != first.models:
            raise ConfigError(
                f"{bundle} is of other models than {bundles[0]}", fix="pack bundles of the same configs and block sizes"
            )
    kernels: dict[str, KernelEntry] = {}
    libraries: dict[str, bytes] = {}
    for bundle, manifest in zip(bundles, manifests, strict=True):
        for entry in manifest.kernels:
            if entry.key not in kernels:
                kernels[entry.key] = entry
                libraries[entry.file] = _library(bundle, entry)
    flags = dict.fromkeys(flag for manifest in manifests for flag in manifest.flags)
    return msgspec.structs.replace(first, kernels=tuple(kernels.values()), flags=tuple(flags)), libraries


def _library(bundle: Path, entry: KernelEntry) -> bytes:
    path = bundle / entry.file
    if not path.is_file() or sha256(path) != entry.digest:
        raise BundleError(f"{path} is missing, or not what its manifest says", fix="rebuild the bundle")
    return path.read_bytes()


def platform_tag(libraries: Iterable[bytes]) -> str:
    """manylinux_2_34_x86_64: of this machine's kind, and the newest glibc whose symbols a library needs (PEP 600)."""
    needed = [int(minor) for data in libraries for minor in _GLIBC.findall(data)]
    return f"manylinux_2_{max(needed, default=17)}_{platform.machine()}"


def _wheel(name: str, version: str, tag: str, files: dict[str, bytes]) -> bytes:
    info = f"{module(name)}-{version}.dist-info"
    requires = "".join(f"Requires-Dist: {requirement}\n" for requirement in REQUIREMENTS)
    words = {
        "METADATA": f"Metadata-Version: 2.1\nName: {distribution(name)}\nVersion: {version}\n"
        f"Summary: Compiled prism-gen kernels for {name}\nRequires-Python: >=3.10\n{requires}",
        "WHEEL": f"Wheel-Version: 1.0\nGenerator: prism-gen {__version__}\n"
        f"Root-Is-Purelib: false\nTag: py3-none-{tag}\n",
        "entry_points.txt": f"[{ENTRY_POINTS}]\n{name} = {module(name)}\n",
    }
    docstring = f'"""The bundle {name}: see prism_gen.runtime.PrismAttention.from_package."""\n'
    contents = {
        f"{module(name)}/__init__.py": docstring.encode(),
        **{f"{module(name)}/{path}": data for path, data in files.items()},
        **{f"{info}/{path}": text.encode() for path, text in words.items()},
    }
    record = "".join(f"{path},sha256={_digest(data)},{len(data)}\n" for path, data in contents.items())
    contents[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path, data in contents.items():
            entry = zipfile.ZipInfo(path, _EPOCH)
            entry.external_attr, entry.compress_type = _FILE_MODE, zipfile.ZIP_DEFLATED
            archive.writestr(entry, data, compresslevel=9)
    return buffer.getvalue()


def _digest(data: bytes) -> str:
    """As RECORD writes it: URL-safe base64 without padding."""
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _tar(root: str, files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        for path, data in files.items():
            entry = tarfile.TarInfo(f"{root}/{path.removeprefix(f'{BUNDLE_FOLDER}/')}")
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
