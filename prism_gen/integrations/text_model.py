"""A transformers model and its tokenizer as calibrate needs them: text to ids, and a loss with attention as a callable.

Owns loading, from a folder or a GGUF file, and the attention implementation that hands q, k and v out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer
from transformers.masking_utils import AttentionMaskInterface

from prism_gen.errors import ConfigError
from prism_gen.model import ModelSpec, SelectionSpec
from prism_gen.model_config import parse_model_config

IMPLEMENTATION = "prism_callable"
LOGIT_TOKENS = 1024  # whose logits are turned to fp32 at once: 0.6 GB for 150,000 words

Attention = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class TextModel:
    """spec: the model's shapes with the selection to calibrate. device: where ids belong."""

    def __init__(self, path: Path, selection: SelectionSpec | None, device: torch.device) -> None:
        """Loads a folder as published, or a .gguf file. selection: None takes the config's `prism` object.

        Raises: ConfigError where there is no such model; UnsupportedError as parse_model_config does.
        """
        is_gguf = path.suffix == ".gguf"
        if not (path.is_file() if is_gguf else (path / "config.json").is_file()):
            exists = "a folder with config.json, weights and tokenizer, or a .gguf file"
            raise ConfigError(f"no model at {path}", exists=exists, fix="correct --model")
        source: dict[str, Any] = {"gguf_file": path.name} if is_gguf else {}
        folder = path.parent if is_gguf else path
        self.tokenizer = AutoTokenizer.from_pretrained(folder, **source)
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=_weights_dtype(device), **source)
        self._model = loaded
        self._model.to(device).eval().requires_grad_(False)
        self._model.set_attn_implementation(IMPLEMENTATION)
        config = self._model.config.to_dict()
        self.spec: ModelSpec = parse_model_config(config, where=str(path), name=path.stem, dtype="bf16", folder=folder)
        if selection is not None:
            self.spec = msgspec.structs.replace(self.spec, selection=selection)
        self.device = device

    def ids(self, text: str, tokens: int) -> Tensor:
        """The first `tokens` tokens of a text, int64 [at most tokens]. Raises: ConfigError for less than two."""
        ids: Tensor = self.tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids[0, :tokens]
        if len(ids) < 2:
            raise ConfigError(f"a text of {len(ids)} tokens", exists="texts of at least 2", fix="give longer --text")
        return ids.to(self.device)

    def nll(self, ids: Tensor, attention: Attention) -> Tensor:
        """Negative log-likelihood of each next token, fp32 [batch, tokens - 1]; ids: int64 [batch, tokens]."""
        parts = [
            F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
            for logits, targets in self.predictions(ids, attention)
        ]
        return torch.cat(parts, dim=1)

    def predictions(self, ids: Tensor, attention: Attention) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits, fp32 [batch, at most LOGIT_TOKENS, words], and the tokens that follow them."""
        with _handed_out(attention):
            logits = self._model(input_ids=ids, use_cache=False).logits
        targets = ids[:, 1:]
        for start in range(0, targets.shape[1], LOGIT_TOKENS):
            some = targets[:, start : start + LOGIT_TOKENS]
            yield logits[:, start : start + some.shape[1]].float(), some


_current: ContextVar[Attention] = ContextVar("attention of the forward pass under way")


@contextmanager
def _handed_out(attention: Attention) -> Iterator[None]:
    token = _current.set(attention)
    try:
        yield
    finally:
        _current.reset(token)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None, **_options: Any
) -> tuple[Tensor, None]:
    """transformers' attention function: heads before tokens there, tokens before heads here; fp32 for the callable."""
    layer: Any = module.layer_idx
    q, k, v = (x.transpose(1, 2).float() for x in (query, key, value))
    return _current.get()(layer, q, k, v).to(query.dtype), None


def _no_mask(*_arguments: Any, **_options: Any) -> None:
    """A whole text without padding needs no mask beside the causal one, which the callable knows."""


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, _no_mask)


def _weights_dtype(device: torch.device) -> torch.dtype:
    """fp32 on a CPU, whose bf16 is slow or missing."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32
