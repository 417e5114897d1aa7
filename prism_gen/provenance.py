"""Which commit a checkout is at, and whether what kernels are made of differs from it.

Owns asking git, and reading its files where there is no git. Must not import anything of this package.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

SOURCES = ("prism_gen", "templates")  # what a bundle depends on: an edited README does not make it dirty
DIRTY = "-dirty"  # behind the commit, as git describe --dirty writes it
# Starts nothing and writes nothing; a checkout whose code runs here already may belong to anybody.
GIT_OPTIONS = ("-c", "core.fsmonitor=false", "-c", "safe.directory=*", "--no-optional-locks")
GIT_TIMEOUT_S = 5.0  # status of this tree takes some 10 ms


def commit_of(checkout: Path) -> str:
    """The commit that a git checkout is at, with "-dirty" where SOURCES differ from it; "" where there is none.

    Without git the commit is read from git's files, and nothing is said of changes.
    """
    if not (checkout / ".git").exists():  # an installed package, maybe in the folder of another repository
        return ""
    try:
        head = _git(checkout, "rev-parse", "HEAD")
        return head + (DIRTY if _git(checkout, "status", "--porcelain", "--", *SOURCES) else "")
    except (OSError, subprocess.SubprocessError):
        return _read_head(checkout / ".git")


def is_dirty(commit: str) -> bool:
    """Whether commit_of found changes."""
    return commit.endswith(DIRTY)


def short(commit: str) -> str:
    """What people are shown: 12 digits, and whether it is dirty."""
    digits = commit.removesuffix(DIRTY)
    return digits[:12] + commit[len(digits) :]


def _git(checkout: Path, *command: str) -> str:
    """What git prints. Its environment is empty: within a hook it would name another repository. Raises: OSError."""
    git = shutil.which("git")
    if git is None:
        raise FileNotFoundError("git")
    whole = [git, *GIT_OPTIONS, *command]
    done = subprocess.run(
        whole, cwd=checkout, env={}, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=True
    )
    return done.stdout.strip()


def _read_head(git: Path) -> str:
    try:
        head = (git / "HEAD").read_text(encoding="ascii").strip()
        return (git / head[5:]).read_text(encoding="ascii").strip() if head.startswith("ref: ") else head
    except OSError:  # a linked worktree, or packed refs
        return ""
