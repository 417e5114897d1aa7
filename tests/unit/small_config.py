"""A small config.json, and how a test writes it with changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SMALL = {
    "model_type": "llama",
    "num_attention_heads": 8,
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "torch_dtype": "bfloat16",
    "max_position_embeddings": 4096,
}


def write_config(path: Path, changes: dict[str, Any]) -> Path:
    """SMALL with `changes` as the file `path`; None removes a key."""
    path.write_text(json.dumps({key: value for key, value in {**SMALL, **changes}.items() if value is not None}))
    return path
