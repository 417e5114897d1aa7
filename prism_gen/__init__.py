"""prism-gen: ahead-of-time CUTLASS kernels for spectral-aware block-sparse attention.

Owns the version and the public names. Must not import torch before one of them is used, so that building needs neither
torch nor a GPU.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prism_gen.integrations.capture import capture
    from prism_gen.integrations.transformers import enable

__version__ = "0.1.0"
__all__ = ["__version__", "capture", "enable"]

_HOMES = {"capture": "prism_gen.integrations.capture", "enable": "prism_gen.integrations.transformers"}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: transformers takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'prism_gen' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
