"""The candidates of some models as units of work, and the bundle that holds all that can be built of them.

Owns which candidates exist and which were refused. Needs a compiler, but neither torch nor a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from prism_gen.build import build_each
from prism_gen.candidates import candidates
from prism_gen.compile import Report
from prism_gen.errors import BundleError, ConfigError
from prism_gen.files import write_atomic
from prism_gen.manifest import MANIFEST_NAME, Manifest, read_manifest
from prism_gen.model import ModelSpec
from prism_gen.plan import templates_of
from prism_gen.render import template_root
from prism_gen.spec import KernelSpec
from prism_gen.specialize import specialize
from prism_gen.toolchain import Toolchain
from prism_gen.tune.shapes import shapes_for
from prism_gen.tune.unit import Unit
from prism_gen.tuning_table import Shape

REFUSED_NAME = "refused.json"  # key -> why no library of it is in the bundle


def wanted_specs(models: Sequence[ModelSpec], archs: Sequence[str], only: str) -> list[KernelSpec]:
    """The candidates of each kernel that the models need and whose name holds `only`, and the others' defaults.

    Raises: as specialize does, and ConfigError where no name does.
    """
    defaults = dict.fromkeys(spec for model in models for spec in specialize(model, archs))
    if not any(only in default.name for default in defaults):
        raise ConfigError(
            f"no kernel of these models is called {only!r}",
            exists=", ".join(default.name for default in defaults),
            fix="leave --only out, or name a part of one",
        )
    return [spec for default in defaults for spec in (candidates(default) if only in default.name else [default])]


def prepare(
    models: Sequence[ModelSpec],
    archs: Sequence[str],
    *,
    only: str,
    out: Path,
    cache: Path,
    toolchain: Toolchain,
    jobs: int,
    report: Report,
) -> Manifest:
    """Builds every candidate that compiles and passes its gates into the bundle `out`, and writes why others do not.

    Raises: BundleError where `out` is a bundle that `build` wrote, which candidates would replace.
    """
    if (out / MANIFEST_NAME).exists() and not (out / REFUSED_NAME).exists():
        raise BundleError(
            f"--candidates {out} is a bundle of another build, which the candidates would replace",
            fix="name another folder, or remove this one",
        )
    specs = wanted_specs(models, archs, only)
    manifest, refused = build_each(models, specs, out=out, cache=cache, toolchain=toolchain, jobs=jobs, report=report)
    write_atomic(out / REFUSED_NAME, msgspec.json.format(msgspec.json.encode(refused), indent=1))
    return manifest


def is_prepared(bundle: Path, models: Sequence[ModelSpec], archs: Sequence[str], only: str) -> bool:
    """Whether the bundle holds the candidates of these models as this version makes them."""
    if not (bundle / MANIFEST_NAME).exists() or not (bundle / REFUSED_NAME).exists():
        return False
    known = {entry.key for entry in read_manifest(bundle).kernels} | _refused(bundle).keys()
    return known >= {spec.key for spec in wanted_specs(models, archs, only)}


def _refused(bundle: Path) -> dict[str, str]:
    path = bundle / REFUSED_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except (OSError, msgspec.DecodeError) as error:
        raise BundleError(f"{path} cannot be read: {error}", fix="run tune --prepare again") from None


def make_units(
    models: Sequence[ModelSpec], archs: Sequence[str], shapes: tuple[Shape, ...], *, bundle: Path | None, only: str = ""
) -> list[Unit]:
    """One unit a problem whose name holds `only`, in the order a build lists them.

    bundle: whose refusals count; None: none is refused. Raises: as wanted_specs does.
    """
    wanted_specs(models, archs, only)
    root = template_root()
    refused = _refused(bundle) if bundle else {}
    units, seen = [], set()
    for model in models:
        for default in specialize(model, archs):
            if default.key not in seen and only in default.name:
                seen.add(default.key)
                tried = candidates(default)
                units.append(
                    Unit(
                        default=default,
                        candidates=tried,
                        templates=templates_of(default, root=root),
                        shapes=shapes_for(default.family, shapes),
                        heads=(model.num_q_heads, model.num_kv_heads),
                        refused={spec.key: refused[spec.key] for spec in tried if spec.key in refused},
                    )
                )
    return units


def shard(units: Sequence[Unit], text: str | None) -> list[Unit]:
    """Part i of n of the units, by their names, for "i/n"; all of them for None. Raises: ConfigError."""
    if text is None:
        return list(units)
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ConfigError(f"--shard {text!r}", exists="i/n with 1 <= i <= n, such as 2/4", fix="give such a pair")
    ordered = sorted(units, key=lambda unit: unit.name)
    return ordered[int(index) - 1 :: int(count)]
