"""A process that may hang or die, watched by what it writes.

Owns the clock and the reading of a growing file. Must not know what is in it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

POLL_S = 0.05  # between looks; a case takes milliseconds, and the first one seconds


class GrowingFile:
    """The complete lines of a file that another process appends to, each once. from_end: only those yet to come."""

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self._path = path
        self._offset = path.stat().st_size if from_end and path.exists() else 0

    def new(self) -> Iterator[bytes]:
        """Lines written since the last call."""
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                yield line


def watch(process: BaseProcess, moved: Callable[[], bool], *, timeout_s: float) -> bool:
    """Until the process has ended: whether it stood still for timeout_s and was killed.

    moved: reads what is new and says whether there was anything; asked once more after the end.
    """
    last, hung = time.monotonic(), False
    while True:
        ended = process.exitcode is not None  # asked first, so that nothing it wrote is missed
        if moved():
            last = time.monotonic()
        if ended:
            return hung
        if time.monotonic() - last > timeout_s:
            hung = True
            process.kill()
        process.join(POLL_S)
