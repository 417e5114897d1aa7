"""Models -> bundle directory: manifest.json, lib/, src/, log/.

Owns publication: a bundle changes in one step, when manifest.json is replaced. Must not know nvcc or what templates
hold.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from prism_gen import __version__, gates
from prism_gen.compile import LOG_NAME, Artifact, Compiler, Event, Report
from prism_gen.errors import BundleError, CompileError, ConfigError, UnsupportedError
from prism_gen.files import locked, sha256, write_atomic
from prism_gen.fingerprint import Source, flags, make_source
from prism_gen.manifest import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    KernelEntry,
    Manifest,
    Provenance,
    Tuning,
    decode_manifest,
    encode_manifest,
    is_manifest,
)
from prism_gen.model import ModelSpec
from prism_gen.plan import plan
from prism_gen.provenance import commit_of, is_dirty
from prism_gen.render import render, template_root
from prism_gen.spec import KernelSpec
from prism_gen.toolchain import Toolchain
from prism_gen.tuning_table import TuningTable

LOCK_NAME = ".lock"
_FOLDERS = ("lib", "src", "log")
# A file name as _entry makes it, perhaps with what write_atomic puts around it: nothing else is ever removed.
_OURS = re.compile(r"-[0-9a-f]{8}\.[0-9a-f.]{12,}\.(?:so|cu|log)(?:\.|$)")


def build(
    models: Sequence[ModelSpec],
    *,
    archs: Sequence[str],
    out: Path,
    cache: Path,
    toolchain: Toolchain,
    jobs: int,
    report: Report,
    root: Path | None = None,
    table: TuningTable | None = None,
    gpu: str | None = None,
) -> Manifest:
    """Build every kernel of `models` for `archs` and publish them as the bundle `out`.

    cache: folder shared by any number of builds. jobs: compiles at once. root: of the templates, by default those of
    this package. table: measured schedules, taken where they are not stale; gpu: what the bundle is for (see plan). A
    kernel that several models need is compiled and listed once.
    Raises: UnsupportedError, RenderError, CompileError; ConfigError where two models have one name; BundleError where
    `out` holds something else than a bundle. After an error the earlier bundle, if any, is unchanged.
    """
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"two of the models are named {name!r}",
                fix="give one of the configs another _name_or_path, or put them into separate bundles",
            )
    _check_is_bundle(out)
    root = root or template_root()
    planned = plan(models, archs, toolchain=toolchain, root=root, table=table, gpu=gpu)
    sources = planned.sources
    for warning in planned.warnings:
        report(Event(kind="warning", name=warning))
    compiler = Compiler(toolchain=toolchain, cache=cache, root=root)
    artifacts = compiler.compile_all(sources, jobs=jobs, report=report)
    manifest = _manifest(models, sources, artifacts, toolchain, planned.tuning)
    return _publish(manifest, artifacts, compiler, out)


def build_each(
    models: Sequence[ModelSpec],
    specs: Sequence[KernelSpec],
    *,
    out: Path,
    cache: Path,
    toolchain: Toolchain,
    jobs: int,
    report: Report,
    root: Path | None = None,
) -> tuple[Manifest, dict[str, str]]:
    """Build as many of these kernels as can be, as the bundle `out`; and, by key, why the others cannot.

    Raises: RenderError; BundleError as build does.
    """
    _check_is_bundle(out)
    root = root or template_root()
    sources, refused = [], {}
    for spec in specs:
        try:
            sources.append(make_source(spec, render(spec, root), root=root, toolchain=toolchain))
        except UnsupportedError as error:
            refused[spec.key] = error.asked
    compiler = Compiler(toolchain=toolchain, cache=cache, root=root)
    results = compiler.compile_each(sources, jobs=jobs, report=report)
    built, artifacts = [], []
    for source, result in zip(sources, results, strict=True):
        if isinstance(result, CompileError):
            refused[source.spec.key] = str(result)
        else:
            built.append(source)
            artifacts.append(result)
    return _publish(_manifest(models, built, artifacts, toolchain, None), artifacts, compiler, out), refused


def _manifest(
    models: Sequence[ModelSpec],
    sources: Sequence[Source],
    artifacts: Sequence[Artifact],
    toolchain: Toolchain,
    tuning: Tuning | None,
) -> Manifest:
    archs = dict.fromkeys(source.spec.arch for source in sources)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        generator=__version__,
        models=tuple(models),
        kernels=tuple(_entry(source, artifact) for source, artifact in zip(sources, artifacts, strict=True)),
        toolchain=toolchain.versions,
        flags=tuple(dict.fromkeys(flag for arch in archs for flag in flags(arch))),
        provenance=_provenance(),
        tuning=tuning,
    )


def _check_is_bundle(out: Path) -> None:
    """Raises: BundleError unless `out` is new, empty, a bundle, or the remains of an interrupted first build."""
    if not out.exists():
        return
    if not out.is_dir():
        raise BundleError(f"--out {out} is a file", fix="name a directory")
    names = {path.name for path in out.iterdir()}
    is_ours = LOCK_NAME in names or (MANIFEST_NAME in names and is_manifest((out / MANIFEST_NAME).read_bytes()))
    if names and not is_ours:
        raise BundleError(f"--out {out} holds other files and no bundle", fix="name a new or an empty directory")


def _entry(source: Source, artifact: Artifact) -> KernelEntry:
    spec: KernelSpec = source.spec
    # The name carries both digests, so that new files land beside the old ones until the manifest is replaced. That of
    # the inputs is not enough: nvcc gives other bytes each time, and the cache may have been emptied in between.
    stem = f"{spec.name}.{artifact.digest[:8]}.{artifact.sha256[:8]}"
    return KernelEntry(
        spec=spec,
        key=spec.key,
        name=spec.name,
        arch=spec.arch,
        file=f"lib/{stem}.so",
        source=f"src/{stem}.cu",
        log=f"log/{stem}.log",
        digest=artifact.sha256,
        artifact=artifact.digest,
        registers=artifact.figures.registers,
        smem_bytes=gates.smem_bytes(spec, artifact.figures),
        stack_bytes=artifact.figures.stack_bytes,
        spill_bytes=artifact.figures.spill_bytes,
        instructions=artifact.figures.instructions,
    )


def _provenance() -> Provenance:
    now = datetime.datetime.now(datetime.timezone.utc)
    return Provenance(
        created=now.isoformat(timespec="seconds"), commit=commit_of(Path(__file__).resolve().parent.parent)
    )


def _publish(manifest: Manifest, artifacts: Sequence[Artifact], compiler: Compiler, out: Path) -> Manifest:
    """Write the bundle; the manifest it now has. Killed at any moment, `out` is the old bundle or the new one."""
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / LOCK_NAME):
        for entry, artifact in zip(manifest.kernels, artifacts, strict=True):
            folder = compiler.folder(artifact.digest)
            _place(folder / artifact.library, out / entry.file)
            _place(folder / artifact.source, out / entry.source)
            _place(folder / LOG_NAME, out / entry.log)
        path = out / MANIFEST_NAME
        old = _old_manifest(path)
        same = old and msgspec.structs.replace(old, provenance=manifest.provenance) == manifest
        if old and same and (is_dirty(manifest.provenance.commit) or not is_dirty(old.provenance.commit)):
            manifest = old  # nothing changed: keep the bytes, and the time and commit of the last change
        else:
            write_atomic(path, encode_manifest(manifest))  # the commit point
        for stray in _strays(manifest, out):
            stray.unlink()
    return manifest


def _place(source: Path, target: Path) -> None:
    if not target.is_file() or sha256(target) != sha256(source):
        write_atomic(target, source.read_bytes())


def _old_manifest(path: Path) -> Manifest | None:
    try:
        return decode_manifest(path.read_bytes(), where=str(path))
    except (OSError, BundleError):  # none yet, or one that this version cannot read and replaces
        return None


def _strays(manifest: Manifest, out: Path) -> Iterator[Path]:
    """Files of earlier or interrupted builds, which the manifest does not name."""
    named = {out / path for entry in manifest.kernels for path in (entry.file, entry.source, entry.log)}
    yield from out.glob(f".{MANIFEST_NAME}.*")
    for folder in _FOLDERS:
        yield from (path for path in list((out / folder).glob("*")) if _OURS.search(path.name) and path not in named)
