"""manifest.json: what a bundle holds, and the only reader and encoder of it.

Owns the schema and its version. Must not load libraries (runtime/load.py does) or write files (build.py does).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from prism_gen.crossover import Crossover
from prism_gen.errors import BundleError, PrismError
from prism_gen.families import decode_spec
from prism_gen.model import ModelSpec
from prism_gen.spec import KernelSpec, Struct

SCHEMA_VERSION = 2  # 2: tuning
MANIFEST_NAME = "manifest.json"


class KernelEntry(Struct, frozen=True, kw_only=True):
    """One compiled kernel.

    file, source, log: paths below the bundle. digest: SHA-256 of the library file. artifact: digest of everything
    it was compiled from. registers: per thread at launch, the most of any entry point. smem_bytes: static plus the
    dynamic part known at build time. instructions: SASS opcode -> count, of the opcodes that gates look at.
    """

    spec: KernelSpec
    key: str
    name: str
    arch: str
    file: str
    source: str
    log: str
    digest: str
    artifact: str
    registers: int
    smem_bytes: int
    stack_bytes: int
    spill_bytes: int
    instructions: dict[str, int]


class Provenance(Struct, frozen=True, kw_only=True):
    """When the bundle's content last changed (UTC, ISO 8601) and from which commit: "" if unknown, "-dirty" behind it
    where sources differed from it.
    """

    created: str
    commit: str


class Tuning(Struct, frozen=True, kw_only=True):
    """The tuning table that the schedules were taken from.

    digest: SHA-256 of the file. gpu: where it was measured. speedups: key of each kernel that is not the default -> how
    many times faster it was. crossovers: where sparse beats dense on that GPU.
    """

    digest: str
    gpu: str
    driver: str
    cuda: str
    speedups: dict[str, float]
    crossovers: tuple[Crossover, ...] = ()


class Manifest(Struct, frozen=True, kw_only=True):
    """Everything a reader of a bundle may rely on. toolchain: tool -> version. flags: of nvcc, without paths.

    tuning: None where every schedule is the default of schedules.py.
    """

    schema_version: int
    generator: str
    models: tuple[ModelSpec, ...]
    kernels: tuple[KernelEntry, ...]
    toolchain: dict[str, str]
    flags: tuple[str, ...]
    provenance: Provenance
    tuning: Tuning | None = None


class _Version(msgspec.Struct):
    """The fields that every schema version has, past and future."""

    schema_version: int
    generator: str = "unknown"


def is_manifest(data: bytes) -> bool:
    """Whether these are the bytes of a manifest, of any schema version; other programs name files manifest.json too."""
    try:
        fields = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return {"schema_version", "generator", "kernels"} <= fields.keys()


def encode_manifest(manifest: Manifest) -> bytes:
    """Indented JSON with sorted keys and a final newline: equal manifests give equal bytes."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=2) + b"\n"


def decode_manifest(data: bytes, *, where: str) -> Manifest:
    """Manifest from the bytes of manifest.json, every kernel's spec typed and its key checked.

    where: what to call the file in errors. Raises: BundleError naming the bad field, or, for a newer schema,
    the version that reads it.
    """
    try:
        version = msgspec.json.decode(data, type=_Version)
        if not 1 <= version.schema_version <= SCHEMA_VERSION:
            raise BundleError(
                f"{where} has schema_version {version.schema_version}, written by prism_gen {version.generator}",
                exists=f"this prism_gen reads schema_version 1 to {SCHEMA_VERSION}",
                fix=f"install prism_gen {version.generator} or newer, or rebuild the bundle with this one",
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{where} is not a bundle manifest: {error}", fix="rebuild the bundle") from None
    entries = tuple(_typed(entry, f"{where}: kernels[{index}]") for index, entry in enumerate(manifest.kernels))
    return msgspec.structs.replace(manifest, kernels=entries)


def _typed(entry: KernelEntry, where: str) -> KernelEntry:
    """The entry with a typed spec. Raises: BundleError where spec, key, name, arch or a path disagree."""
    try:
        spec = decode_spec(msgspec.to_builtins(entry.spec))
    except PrismError as error:
        raise BundleError(f"{where}.spec: {error.asked}", exists=error.exists, fix="rebuild the bundle") from None
    expected: dict[str, Any] = {"key": spec.key, "name": spec.name, "arch": spec.arch}
    for field, value in expected.items():
        if getattr(entry, field) != value:
            raise BundleError(
                f"{where}.{field} is {getattr(entry, field)!r}, but its spec says {value!r}",
                fix="rebuild the bundle; manifests are not edited by hand",
            )
    for field in ("file", "source", "log"):
        path = Path(getattr(entry, field))
        if path.is_absolute() or ".." in path.parts:
            raise BundleError(
                f"{where}.{field} is {str(path)!r}, which is outside the bundle", fix="rebuild the bundle"
            )
    return msgspec.structs.replace(entry, spec=spec)


def read_manifest(bundle: Path) -> Manifest:
    """The manifest of the bundle directory. Raises: BundleError if missing, unreadable, malformed or too new."""
    path = bundle / MANIFEST_NAME
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"no readable {MANIFEST_NAME} in {bundle} ({error.strerror or error})",
            fix=f"python -m prism_gen build --model-config config.json --out {bundle}",
        ) from None
    return decode_manifest(data, where=str(path))
