"""Bundles that are installed as packages: found through their entry points, without importing them.

Owns the lookup, and PrismAttention.from_package. Must not know how a package is made (pack.py does).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any, TypeVar

from prism_gen.errors import BundleError
from prism_gen.package_names import BUNDLE_FOLDER, ENTRY_POINTS
from prism_gen.runtime.load import Bundle, load_bundle

_T = TypeVar("_T")


def installed_bundles() -> dict[str, Path]:
    """Name -> bundle directory of every installed package that `pack` made."""
    found = {}
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        spec = importlib.util.find_spec(point.value)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            found[point.name] = Path(folder) / BUNDLE_FOLDER
    return found


def load_package(name: str | None = None) -> Bundle:
    """The bundle of an installed package; None: of the only one. Raises: BundleError where there is no such, or as
    load_bundle does.
    """
    installed = installed_bundles()
    if name is None and len(installed) == 1:
        return load_bundle(next(iter(installed.values())))
    if name is None or name not in installed:
        raise BundleError(
            f"no installed bundle is called {name!r}" if name else f"{len(installed)} bundles are installed",
            exists=", ".join(sorted(installed)) or "no bundle package at all",
            fix="name one of these, or pip install the wheel that `python -m prism_gen pack` made",
        )
    return load_bundle(installed[name])


class FromPackage:
    """What a class that is made from a bundle gets beside its __init__(bundle, model, layer, ...)."""

    @classmethod
    def from_package(
        cls: type[_T], package: str | None = None, model: str | None = None, layer: int = 0, **options: Any
    ) -> _T:
        """From a bundle that is installed as a package, by its name; None: the only one. The rest is as __init__'s.

        Raises: BundleError where no such package is installed; and as __init__ does.
        """
        return cls(load_package(package), model, layer, **options)  # type: ignore[call-arg]
