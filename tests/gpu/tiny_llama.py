"""The random Llama whose shapes the kernels of tests/gpu serve."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def make_model(device: str) -> LlamaForCausalLM:
    """Two layers of 8 q and 2 kv heads of 128, bf16, random: drawn on the device."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=128,
        vocab_size=512,
        max_position_embeddings=4096,
        initializer_range=0.05,
    )
    with torch.device(device):
        return LlamaForCausalLM._from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
