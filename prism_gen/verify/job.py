"""What an examination's process is told, and the words that it and its supervisor share.

Owns the Job. Must not import torch: a supervisor needs none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SECTION = "verify"
BEGIN, OPEN, END = "begin", "open", "end"  # cases that say where the worker is
LOST_STATUS = 3  # of a worker whose CUDA context is beyond use; the record of the case is written

Backend = Literal["cuda", "reference"]


@dataclass(frozen=True)
class Job:
    """What a worker is to do. records: where its lines go, appended. only: part of a subject's name, "" for all.

    done: subjects that an earlier worker has ended or died in. qkv: files of real tensors to try layers on as well.
    """

    bundle: Path
    backend: Backend
    device: str
    arch: str
    records: Path
    quick: bool
    only: str
    done: frozenset[str] = frozenset()
    qkv: tuple[Path, ...] = ()
