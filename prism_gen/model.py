"""What a model is to the generator: shapes, RoPE, and how its layers select blocks.

Owns the validated, frozen specs. Must not know Hugging Face key names (model_config.py does) or kernels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from prism_gen.errors import ConfigError
from prism_gen.profile import SelectionProfile

BAND_GRANULE_DIMS = 16  # one MMA k-step; a band is a whole number of them
SUB_BLOCK_SIZES = (4, 8, 16)  # tokens; finer costs more than it gains, coarser loses what makes it accurate (method.md)

RopeVariant = Literal["none", "default", "linear", "dynamic", "llama3", "yarn", "longrope"]
BandMode = Literal["paper", "spectrum"]
CalibrationMode = Literal["sequence", "prefix"]
LayerKind = Literal["full", "sliding"]
Share = Literal["head", "group"]
CutKind = Literal["top_p", "top_k", "density"]
EstimatorName = Literal["paper", "subblock", "auto"]
Reduce = Literal["max", "mean"]


class RopeSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rotary embedding of one model. Frequencies come from rope.inv_freq(spec).

    rotary_dim: dims that rotate, even, <= head_dim. interleaved: pair p is dims (2p, 2p+1) if True,
    else (p, p + rotary_dim/2). The scaling fields hold the published values; those a variant does not
    use are None. original_max_position_embeddings: tokens; for "dynamic" the length that scaling starts from.
    truncate: whether YaRN rounds its ramp to whole pairs.
    Raises: ConfigError if a field that the variant needs is missing, or a value is out of range.
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
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.rotary_dim < 0 or self.rotary_dim % 2:
            raise _bad("rotary_dim", self.rotary_dim, "an even number of dims", "correct the partial rotary settings")
        if not (math.isfinite(self.theta) and self.theta > 1):
            raise _bad("rope_theta", self.theta, "a finite number above 1", "use the published value")
        for name in _NEEDED_FIELDS[self.variant]:
            if getattr(self, name) is None:
                raise _bad(name, None, f"a value, because rope type {self.variant} needs it", "use the published value")
        positive = ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow")
        for name in (*positive, "original_max_position_embeddings"):
            _check_positive(name, getattr(self, name))
        for name in ("long_factor", "short_factor"):
            factors: tuple[float, ...] | None = getattr(self, name)
            if factors is None:
                continue
            if len(factors) != self.rotary_dim // 2:
                found = f"a list of {len(factors)}"
                raise _bad(name, found, f"{self.rotary_dim // 2} numbers, one per RoPE pair", "use the published list")
            for value in factors:
                _check_positive(name, value)
        if self.low_freq_factor is not None and self.low_freq_factor == self.high_freq_factor:
            raise _bad("high_freq_factor", self.high_freq_factor, "a value other than low_freq_factor", "see the model")


class SelectionSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How blocks are chosen (method.md steps 1 to 5); the `prism` object of a config.json, parsed.

    share: whose list of blocks it is: one per q head, or one per KV head for all its q heads; block sizes count
    positions either way. block_sizes: (q tokens, k tokens), the first is the model's default.
    high_freq_dim, low_freq_dim: dims per band, multiples of 16; None takes the paper's fractions (1/2 and 3/4 of
    head_dim).
    thresholds: cumulative probability in (0, 1]; 1 selects every visible block. calibration: "prefix" makes chunked
    prefill select what one call selects. fused_rope: also build the kernel that rotates q and k and pools them in one
    pass.
    estimator: how blocks are scored: "paper" by bands of block means (bands, *_freq_*, calibration are its fields),
    "subblock" by means of sub-blocks (sub_block_*, reduce, exclude_forced, threshold are its fields), "auto" likewise
    with sizes from the RoPE spectrum. sub_block_q, sub_block_k: tokens, 4, 8 or 16; None: 8, or what "auto" derives.
    reduce: over the sub-rows of a query block. exclude_forced: the threshold counts the mass beside the forced blocks.
    top_k, density: what the distributions of a row keep instead of reaching the thresholds: so many key blocks each, or
    such a share (0, 1] of the visible ones; at most one of the two. max_blocks: capacity of a list, at least the forced
    blocks of any row; a row that wants more keeps the strongest that fit. None: every key block fits.
    profile: thresholds by layer and list of blocks, found by `calibrate`, over the one of all.
    Raises: ConfigError if a value is out of range.
    """

    bands: BandMode = "paper"
    high_freq_dim: int | None = None
    low_freq_dim: int | None = None
    block_sizes: tuple[tuple[int, int], ...] = ((128, 128),)
    share: Share = "head"
    high_freq_threshold: float = 0.95
    low_freq_threshold: float = 0.95
    force_sink: bool = True
    force_recent: bool = True
    fused_rope: bool = False
    calibration: CalibrationMode = "sequence"
    estimator: EstimatorName = "paper"
    sub_block_q: int | None = None
    sub_block_k: int | None = None
    reduce: Reduce = "max"
    exclude_forced: bool = False
    threshold: float = 0.94
    top_k: int | None = None
    density: float | None = None
    max_blocks: int | None = None
    profile: SelectionProfile | None = None

    def __post_init__(self) -> None:
        for name in ("high_freq_dim", "low_freq_dim"):
            dim: int | None = getattr(self, name)
            if dim is not None and (dim <= 0 or dim % BAND_GRANULE_DIMS):
                raise _bad(name, dim, f"a positive multiple of {BAND_GRANULE_DIMS} dims", "round it, or leave it out")
        for name in ("high_freq_threshold", "low_freq_threshold", "threshold"):
            threshold: float = getattr(self, name)
            if not 0 < threshold <= 1:  # also refuses NaN
                usual = "sub-blocks of 8 use 0.94" if name == "threshold" else "the paper uses 0.95 or 0.93"
                raise _bad(name, threshold, "a cumulative probability in (0, 1]", usual)
        if not self.block_sizes:
            raise _bad("block_sizes", [], "at least one pair of q and k tokens", 'give for example ["128x128"]')
        if len(set(self.block_sizes)) != len(self.block_sizes):
            raise _bad("block_sizes", list(self.block_sizes), "each pair once", "remove the repeated pair")
        if any(size <= 0 for pair in self.block_sizes for size in pair):
            raise _bad("block_sizes", list(self.block_sizes), "positive token counts", 'give for example ["128x128"]')
        self._check_sub_blocks()
        self._check_cut()

    @property
    def cut(self) -> CutKind:
        """What a row's distributions are cut by."""
        return "top_k" if self.top_k is not None else "density" if self.density is not None else "top_p"

    def _check_cut(self) -> None:
        if self.top_k is not None and self.density is not None:
            raise _bad("density", self.density, f"None beside top_k, which is {self.top_k}", "keep one of the two")
        for name in ("top_k", "max_blocks"):
            count: int | None = getattr(self, name)
            if count is not None and count < 1:
                raise _bad(name, count, "a number of key blocks, at least 1", "raise it, or leave it out")
        if self.density is not None and not 0 < self.density <= 1:  # also refuses NaN
            raise _bad("density", self.density, "a share of the visible blocks in (0, 1]", "give for example 0.1")
        if self.profile is not None and self.cut != "top_p":
            raise _bad("profile", "given", f"thresholds of probability, not of {self.cut}", "keep one of the two")

    def _check_sub_blocks(self) -> None:
        for side, name in enumerate(("sub_block_q", "sub_block_k")):
            size: int | None = getattr(self, name)
            if size is None:
                continue
            if size not in SUB_BLOCK_SIZES:
                raise _bad(name, size, f"one of {', '.join(map(str, SUB_BLOCK_SIZES))} tokens", "choose one of these")
            for pair in self.block_sizes:
                if pair[side] % size:
                    allowed = f"a divisor of every block size, such as of {pair[side]}"
                    raise _bad(name, size, allowed, "choose a smaller sub-block, or other block_sizes")


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model. layer_kinds has one entry per layer; only "full" layers run Prism.

    dtype: "bf16" | "fp16". name: for people, from the config or its file name. softmax_scale: what the model
    multiplies q k^T by; None means head_dim ** -0.5.
    Raises: ConfigError if the fields contradict each other.
    """

    name: str
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    rope: RopeSpec
    selection: SelectionSpec
    layer_kinds: tuple[LayerKind, ...]
    softmax_scale: float | None = None

    def __post_init__(self) -> None:
        for name in ("num_q_heads", "num_kv_heads", "head_dim"):
            _check_positive(name, getattr(self, name))
        if self.num_q_heads % self.num_kv_heads:
            allowed = f"a divisor of num_q_heads, {self.num_q_heads}"
            raise _bad("num_kv_heads", self.num_kv_heads, allowed, "correct one of the two head counts")
        if self.rope.rotary_dim > self.head_dim:
            raise _bad("rotary_dim", self.rope.rotary_dim, f"at most head_dim, {self.head_dim}", "correct one of them")
        for name in ("high_freq_dim", "low_freq_dim"):
            dim: int | None = getattr(self.selection, name)
            if dim is not None and dim > self.head_dim:
                raise _bad(f"prism.{name}", dim, f"at most head_dim, {self.head_dim}", "choose a narrower band")
        if not self.layer_kinds:
            raise _bad("layer_kinds", [], "at least one layer", "correct the number of layers")
        if self.selection.profile is not None:
            self.selection.profile.check(
                num_layers=self.num_layers, num_lists=self.num_lists, share=self.selection.share
            )
        _check_positive("softmax_scale", self.softmax_scale)

    @property
    def group_size(self) -> int:
        """q heads that share one kv head."""
        return self.num_q_heads // self.num_kv_heads

    @property
    def heads_per_list(self) -> int:
        """q heads that share one list of blocks."""
        return self.group_size if self.selection.share == "group" else 1

    @property
    def num_lists(self) -> int:
        """Lists of blocks that a query block has."""
        return self.num_q_heads // self.heads_per_list

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.layer_kinds)


_NEEDED_FIELDS: dict[RopeVariant, Sequence[str]] = {
    "none": (),
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor", "original_max_position_embeddings"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
    "longrope": ("long_factor", "short_factor", "original_max_position_embeddings"),
}


def _bad(field: str, found: object, allowed: str, fix: str) -> ConfigError:
    return ConfigError(f"{field} is {found}", exists=allowed, fix=fix)


def _check_positive(field: str, value: float | None) -> None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise _bad(field, value, "a finite number above 0", "use the published value")
