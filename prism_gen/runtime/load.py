"""Bundle directory -> verified kernels.

Owns the checks between disk and launch: manifest, digests, architecture, and the spec embedded in each library. Must
not choose kernels (resolve.py does) or compile.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prism_gen.arch import ARCHS
from prism_gen.errors import BundleError, ConfigError, DeviceError
from prism_gen.files import sha256
from prism_gen.manifest import KernelEntry, Manifest, read_manifest
from prism_gen.model import ModelSpec


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest and library digests were checked. Libraries are opened on first use and kept."""

    path: Path
    manifest: Manifest
    _modules: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def model(self, name: str | None = None) -> ModelSpec:
        """The model called `name`, or the only one.

        Raises: ConfigError if there is no such model, or several to choose from.
        """
        models = {model.name: model for model in self.manifest.models}
        if name is None and len(models) == 1:
            return next(iter(models.values()))
        if name is None or name not in models:
            raise ConfigError(
                f"the bundle {self.path} has {len(models)} models"
                if name is None
                else f"no model {name!r} in {self.path}",
                exists=", ".join(models) or "no model at all",
                fix="name one of these, or give a ModelSpec or the path of a config.json",
            )
        return models[name]

    def arch_for(self, capability: tuple[int, int], device_name: str) -> str:
        """The name of the arch that a device of this compute capability runs, if the bundle has kernels for it.

        Raises: DeviceError if prism_gen knows no such arch; BundleError if the bundle was built for others.
        """
        device = f"{device_name} (compute capability {capability[0]}.{capability[1]})"
        names = [row.name for row in ARCHS.values() if row.capability == capability]
        if not names:
            raise DeviceError(
                f"no kernels exist for {device}",
                exists=", ".join(
                    f"{row.name} for capability {row.capability[0]}.{row.capability[1]}" for row in ARCHS.values()
                ),
                fix='use a GPU of one of these, or backend="reference"',
            )
        built = sorted({entry.arch for entry in self.manifest.kernels})
        if names[0] not in built:
            raise BundleError(
                f"the bundle {self.path} holds no kernel for {device}, which needs {names[0]}",
                exists=", ".join(built) or "no kernels",
                fix=f"python -m prism_gen build --model-config config.json --arch {names[0]} --out {self.path}",
            )
        return names[0]

    def sparse_from(self, gpu: str, label: str, *, density: float) -> int | None:
        """The shortest length, tokens, from which selection and attend beat dense attention on `gpu`, as tune measured.

        label: of the attend problem. density: selected over visible blocks. Where sparse won at no measured length, one
        token more than the longest of them. None: the bundle was not built with a tuning table of this GPU and problem.
        """
        tuning = self.manifest.tuning
        known = tuning.crossovers if tuning and tuning.gpu == gpu else ()
        found = next((crossover for crossover in known if crossover.label == label), None)
        if found is None:
            return None
        shortest = found.wins_from(density)
        return shortest if shortest is not None else 1 + max(crossing.seqlen for crossing in found.crossings)

    def module(self, entry: KernelEntry) -> Any:
        """The opened library of one kernel, a tvm_ffi module. Needs no GPU: only launching does.

        Raises: BundleError if it does not open, or was built from another spec than the manifest says.
        """
        if entry.key not in self._modules:
            self._modules[entry.key] = open_library(self.path / entry.file, entry)
        return self._modules[entry.key]


def load_bundle(path: str | Path) -> Bundle:
    """Reads the manifest and checks the SHA-256 of every library; opens none.

    Safe beside a build of the same bundle: where the manifest was replaced under the check, the new one is read.
    Raises: BundleError for a missing, malformed, truncated or newer-schema manifest, an unknown architecture, and a
    missing, truncated or corrupted library.
    """
    path = Path(path)
    if not path.is_dir():
        raise BundleError(
            f"no bundle at {path}" + (": it is a file" if path.exists() else ""),
            exists="a bundle is the directory that build writes, with manifest.json and lib/",
            fix=f"python -m prism_gen build --model-config config.json --out {path}",
        )
    while True:
        manifest = read_manifest(path)
        try:
            _check_kernels(path, manifest)
        except BundleError:
            if read_manifest(path) == manifest:
                raise
        else:
            return Bundle(path, manifest)


def _check_kernels(path: Path, manifest: Manifest) -> None:
    for entry in manifest.kernels:
        if entry.arch not in ARCHS:
            raise BundleError(
                f"{entry.name} in {path} was built for {entry.arch}, which this prism_gen does not know",
                exists=", ".join(ARCHS),
                fix=f"install the prism_gen that wrote it ({manifest.generator}), or rebuild the bundle",
            )
        _check_digest(path / entry.file, entry)


def _check_digest(library: Path, entry: KernelEntry) -> None:
    try:
        digest, num_bytes = sha256(library), library.stat().st_size
    except OSError as error:
        raise BundleError(
            f"{library} of {entry.name} cannot be read ({error.strerror or error})", fix="rebuild the bundle"
        ) from None
    if digest != entry.digest:
        raise BundleError(
            f"{library} is corrupted or truncated: its {num_bytes} bytes have SHA-256 {digest}",
            exists=f"the manifest says {entry.digest}",
            fix="copy the bundle again, or rebuild it",
        )


def open_library(library: Path, entry: KernelEntry) -> Any:
    """A library whose embedded spec is the entry's, as a tvm_ffi module.

    Raises: BundleError if it does not open, exports no spec(), or embeds another spec.
    """
    import tvm_ffi  # noqa: PLC0415 first, because it makes the symbols global that every library is linked against; 2 s

    try:
        module = tvm_ffi.load_module(str(library))
        embedded = str(module.get_function("spec")())
    except Exception as error:  # tvm_ffi raises RuntimeError, AttributeError or OSError by what dlopen says
        raise BundleError(
            f"{library} does not open as a kernel library: {error}",
            exists=f"apache-tvm-ffi {tvm_ffi.__version__} is installed here",
            fix="rebuild the bundle on a machine whose glibc is not newer than this one's",
        ) from error
    expected = entry.spec.to_json()
    if embedded != expected:
        raise BundleError(
            f"{library} embeds another spec than the manifest\n  embedded: {embedded}\n  manifest: {expected}",
            fix="rebuild the bundle",
        )
    return module
