"""Which commit a checkout is at.

Owns reading git's files, without git. Must not import anything of this package.
"""

from __future__ import annotations

from pathlib import Path


def commit_of(checkout: Path) -> str:
    """The commit that a git checkout is at, read from its files; "" where there is none."""
    try:
        head = (checkout / ".git" / "HEAD").read_text(encoding="ascii").strip()
        return (checkout / ".git" / head[5:]).read_text(encoding="ascii").strip() if head.startswith("ref: ") else head
    except OSError:  # an installed package, a linked worktree, or packed refs
        return ""
