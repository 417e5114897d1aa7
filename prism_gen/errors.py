"""Every error this package raises on purpose.

Owns the three-part message: what was asked, what exists, what to do. Must not import anything.
"""

from __future__ import annotations


class PrismError(Exception):
    """Base of every error raised on purpose.

    asked: one line, what was asked for and why it failed.
    exists: what is available instead, one line or several ("" leaves it out).
    fix: what the reader should do next ("" leaves it out).
    """

    def __init__(self, asked: str, *, exists: str = "", fix: str = "") -> None:
        self.asked = asked
        self.exists = exists
        self.fix = fix
        lines = [asked]
        if exists:
            lines.append(f"  available: {exists}")
        if fix:
            lines.append(f"  fix: {fix}")
        super().__init__("\n".join(lines))


class ConfigError(PrismError, ValueError):
    """A model config is missing, malformed, or states something contradictory."""


class UnsupportedError(PrismError):
    """A well-formed request that no kernel, schedule or variant serves."""


class RenderError(PrismError):
    """A template asked for a constant that its context does not hold."""


class ToolchainError(PrismError):
    """nvcc, a header package or a host compiler is missing or unusable."""


class CompileError(PrismError):
    """nvcc failed, or its output failed a gate (spills, missing instructions, shared memory)."""


class BundleError(PrismError):
    """A bundle is missing, torn, corrupted, too new, or built for another architecture."""


class ResolveError(PrismError):
    """No kernel in the bundle serves the request; the message holds every rejection and why."""


class TensorError(PrismError, ValueError):
    """A tensor argument has the wrong dtype, device, shape, stride or value."""


class DeviceError(PrismError, RuntimeError):
    """A GPU was asked for where there is none, or of another architecture."""
