"""What a model is to the generator: shapes, RoPE, and how its layers select blocks.

Owns the validated, frozen specs. Must not know Hugging Face key names (model_config.py does) or kernels.
"""

from __future__ import annotations

from typing import Literal

import msgspec

RopeVariant = Literal["none", "default", "linear", "dynamic", "llama3", "yarn", "longrope"]
BandMode = Literal["paper", "spectrum"]
LayerKind = Literal["full", "sliding"]


class RopeSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rotary embedding of one model. Frequencies come from rope.inv_freq(spec).

    rotary_dim: dims that rotate, even, <= head_dim. interleaved: pair p is dims (2p, 2p+1) if True,
    else (p, p + rotary_dim/2). The scaling fields hold the published values; those a variant does not
    use are None.
    """

    variant: RopeVariant = "default"
    theta: float = 10000.0
    rotary_dim: int
    interleaved: bool = False
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    long_factor: tuple[float, ...] | None = None
    short_factor: tuple[float, ...] | None = None


class SelectionSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How blocks are chosen (method.md steps 1 to 5); the `prism` object of a config.json, parsed.

    block_sizes: (q tokens, k tokens), the first is the model's default. high_freq_dim, low_freq_dim:
    dims per band, multiples of 16; None takes the paper's fractions (1/2 and 3/4 of head_dim).
    thresholds: cumulative probability in (0, 1]; 1 selects every visible block.
    """

    bands: BandMode = "paper"
    high_freq_dim: int | None = None
    low_freq_dim: int | None = None
    block_sizes: tuple[tuple[int, int], ...] = ((128, 128),)
    high_freq_threshold: float = 0.95
    low_freq_threshold: float = 0.95
    force_sink: bool = True
    force_recent: bool = True


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model. layer_kinds has one entry per layer; only "full" layers run Prism.

    dtype: "bf16" | "fp16". name: for people, from the config or its file name.
    """

    name: str
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    rope: RopeSpec
    selection: SelectionSpec
    layer_kinds: tuple[LayerKind, ...]

    @property
    def group_size(self) -> int:
        """q heads that share one kv head."""
        return self.num_q_heads // self.num_kv_heads

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.layer_kinds)
