"""Models and texts from files, as transformers loads them; the capture command.

Owns loading by path. Must not record (capture.py does).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prism_gen.errors import ConfigError
from prism_gen.integrations.capture import capture


def load_pretrained(weights: str, *, dtype: torch.dtype, device: str) -> tuple[Any, Any]:
    """A model in eval mode and its tokenizer, from a folder, a .gguf file (needs gguf and accelerate), or a hub name.

    Raises: ConfigError where transformers cannot load it.
    """
    path = Path(weights)
    source, options = (str(path.parent), {"gguf_file": path.name}) if path.suffix == ".gguf" else (weights, {})
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **options)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(
            f"transformers cannot load {weights}: {str(error).strip().splitlines()[0]}",
            fix="give a folder as save_pretrained writes it, a .gguf file, or the name of a model that can be reached",
        ) from None
    return model.to(device).eval(), tokenizer


@torch.no_grad()
def capture_text(
    weights: str, text: Path, layers: list[int], folder: Path, *, tokens: int, device: str | None = None
) -> list[Path]:
    """Reads the first `tokens` of a text with a model and writes q, k, v of `layers` in bf16; the files.

    device: default cuda where torch sees one. Raises: ConfigError for a model, text or layer that is not there.
    """
    try:
        words = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{text} cannot be read: {error}", fix="give a UTF-8 text file") from None
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float32 if chosen == "cpu" else torch.bfloat16
    model, tokenizer = load_pretrained(weights, dtype=dtype, device=chosen)
    ids = tokenizer(words, return_tensors="pt").input_ids[:, :tokens].to(chosen)
    with capture(model, layers, folder, dtype=torch.bfloat16) as files:
        model.get_decoder()(ids)
    return list(files.values())
