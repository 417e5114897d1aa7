"""The documents that perplexity is taken on: token ids, and where the answers of a needle task stand.

Owns their file format: NAME.npz with `ids` and, for needle tasks, `answer_mask` (bool, per token). Must not tokenise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from prism_gen.errors import ConfigError


class Document(NamedTuple):
    """ids: int64 [tokens]. answers: bool [tokens], the tokens that a needle task asks for, or None."""

    name: str
    ids: Tensor
    answers: Tensor | None


def load_documents(folder: Path, names: Sequence[str], *, tokens: int | None = None) -> list[Document]:
    """Documents by name (none: every .npz of the folder), cut to `tokens`.

    Raises: ConfigError for a name that is not there, or a document that is shorter than asked for.
    """
    available = sorted(path.stem for path in folder.glob("*.npz"))
    missing = [name for name in names if name not in available]
    if missing or not available:
        found = ", ".join(available) or "no .npz file"
        raise ConfigError(f"no document {', '.join(missing) or '.npz'} in {folder}", exists=found, fix="correct --docs")
    return [_load(folder / f"{name}.npz", tokens) for name in names or available]


def _load(path: Path, tokens: int | None) -> Document:
    with np.load(path) as data:
        ids = torch.from_numpy(data["ids"].astype(np.int64))
        answers = torch.from_numpy(data["answer_mask"].astype(bool)) if "answer_mask" in data else None
    if tokens is not None and len(ids) < tokens:
        raise ConfigError(f"{path} has {len(ids)} tokens", exists=f"--tokens {tokens}", fix="ask for fewer tokens")
    return Document(path.stem, ids[:tokens], None if answers is None else answers[:tokens])
