"""KernelSpec: the one identity of a compiled kernel.

Owns canonical JSON, key and name. A Problem says what is computed, a Schedule how; both are frozen structs
defined in families/. Must not import families, render or compile.
"""

from __future__ import annotations

import hashlib
from typing import Any, Protocol

import msgspec


class Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every Problem and Schedule: frozen, keyword-only, strict when decoded."""


class Problem(Protocol):
    """What is computed. label() is the part of a kernel name that people read, e.g. bf16-d128-b128x64."""

    def label(self) -> str: ...


class KernelSpec(Struct, frozen=True, kw_only=True):
    """family + arch + Problem + Schedule. Everything that changes a kernel's instructions, nothing else."""

    family: str
    arch: str
    problem: Any
    schedule: Any

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces; embedded in the library and hashed into the key."""
        return msgspec.json.encode(msgspec.to_builtins(self), order="sorted").decode()

    @property
    def key(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON: a hash of every field."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """For people and file names; the key alone is identity."""
        return f"{self.family}-{self.arch}-{self.problem.label()}-{self.key[:8]}"
