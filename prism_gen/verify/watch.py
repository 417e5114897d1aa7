"""A process that may hang or die, started out of Ctrl-C's reach and watched by what it writes.

Owns the clock and the reading of a growing file. Must not know what is in it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

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


def start_worker(target: Callable[..., None], args: tuple[Any, ...]) -> BaseProcess:
    """A process that ends with this one. Ctrl-C reaches this one alone, and watch() then ends the other."""
    process = multiprocessing.get_context("spawn").Process(target=target, args=args, daemon=True)
    if threading.current_thread() is not threading.main_thread():  # where signals cannot be set, nor Ctrl-C arrive
        process.start()
        return process
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which a process that is started inherits
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, before)
    return process


def watch(process: BaseProcess, moved: Callable[[], bool], *, timeout_s: float) -> bool:
    """Until the process has ended: whether it stood still for timeout_s and was killed.

    moved: reads what is new and says whether there was anything; asked once more after the end.
    """
    last, hung = time.monotonic(), False
    try:
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
    except BaseException:  # Ctrl-C, or what `moved` raises
        process.kill()
        process.join()
        raise
