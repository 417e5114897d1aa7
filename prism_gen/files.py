"""Locks, atomic writes and digests of files.

Owns how a file or folder appears whole or not at all. Must not know what the files hold.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_POLL_S = 0.05  # a waiter is let in at most this late; compiles take seconds


@contextlib.contextmanager
def locked(path: Path, *, give_up: Callable[[], bool] = lambda: False) -> Iterator[bool]:
    """Hold an exclusive lock between processes and threads; it falls when its holder dies.

    give_up: asked while the lock is taken; once True, the body runs without the lock and receives False.
    """
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if give_up():
                    yield False
                    return
                time.sleep(_POLL_S)
            else:
                yield True
                return


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` in one step: a reader sees the old bytes or the new ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), 0o644)  # mkstemp gives 0600, and bundles are shared
        Path(scratch).replace(path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def land(scratch: Path, final: Path) -> None:
    """Rename a finished scratch folder into place; a damaged earlier one is removed first."""
    if final.exists():
        shutil.rmtree(final)
    scratch.chmod(0o755)  # mkdtemp gives 0700, and caches are shared
    scratch.rename(final)
