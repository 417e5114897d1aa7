"""Tiny random models of transformers' architectures, and how the tests run them.

Owns their configs: every size as small as the architecture allows. Must not judge.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import prism_gen
from prism_gen.integrations.transformers import Enabled
from prism_gen.model import SelectionSpec

BLOCKS = (16, 8)
VOCAB = 128
_COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HEAD_DIM = {"head_dim": 32}
_PARTIAL = {"num_attention_heads": 2, "num_key_value_heads": 2, "partial_rotary_factor": 0.5, "rotary_pct": 0.5}
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 24}

# Model type -> what its config needs beside the common sizes.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _HEAD_DIM,
    "mistral": {**_HEAD_DIM, "sliding_window": None},
    "mixtral": {**_HEAD_DIM, **_EXPERTS, "sliding_window": None},
    "qwen2": {},
    "qwen3": _HEAD_DIM,
    "qwen3_moe": {**_HEAD_DIM, **_EXPERTS},
    "phi3": {},
    "olmo2": {},
    "granite": {"attention_multiplier": 0.2},
    "cohere": {},
    "cohere2": {**_HEAD_DIM, **_MIXED},
    "glm4": _HEAD_DIM,
    "starcoder2": {"sliding_window": None},
    "stablelm": _PARTIAL,
    "gemma3_text": {**_HEAD_DIM, **_MIXED, "query_pre_attn_scalar": 20},
    "helium": {"head_dim": 16},
    "gpt_neox": _PARTIAL,
    "gemma2": {**_HEAD_DIM, **_MIXED},
    "smollm3": {"no_rope_layers": [1, 0]},
}
# Layers that stay dense, by what is said of them; all others run sparse.
DENSE = {
    "cohere2": {0: "sliding", 1: "without RoPE"},
    "gemma3_text": {0: "sliding"},
    "gemma2": dict.fromkeys((0, 1), "attn_logit_softcapping"),
    "smollm3": dict.fromkeys((0, 1), "no_rope_layers"),
}


def tiny(model_type: str = "llama", **fields: Any) -> PreTrainedModel:
    """A random fp32 model in eval mode, with weights large enough that attention is far from even."""
    config = AutoConfig.for_model(model_type, **{**_COMMON, **CONFIGS[model_type], "initializer_range": 0.1, **fields})
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def enable(model: PreTrainedModel, threshold: float = 1.0, **options: Any) -> Enabled:
    """Prism on `model` in plain torch, with small blocks. threshold: of every band; 1 selects everything.

    options: of prism_gen.enable, and fields of the SelectionSpec.
    """
    names = ("min_queries", "min_keys", "keep_stats", "high_threshold", "low_threshold")
    of_enable = {name: options.pop(name) for name in names if name in options}
    thresholds = dict.fromkeys(("high_freq_threshold", "low_freq_threshold", "threshold"), threshold)
    selection = SelectionSpec(block_sizes=(BLOCKS,), **thresholds, **options)
    enabled = prism_gen.enable(model, backend="reference", selection=selection, **of_enable)
    model.set_attn_implementation("prism")
    return enabled


def token_ids(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Tokens without the special ones."""
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))
