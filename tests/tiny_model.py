"""The small model that build tests share. Must not import torch."""

from __future__ import annotations

from prism_gen.model import ModelSpec, RopeSpec, SelectionSpec

TINY = ModelSpec(
    name="tiny",
    num_q_heads=8,
    num_kv_heads=2,
    head_dim=128,
    dtype="bf16",
    rope=RopeSpec(rotary_dim=128),
    selection=SelectionSpec(block_sizes=((128, 128),)),
    layer_kinds=("full", "full"),
)
