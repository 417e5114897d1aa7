"""RoPE frequencies of every variant, what mean pooling does to each pair, and the two bands that follow.

Owns the arithmetic of method.md step 2, in float64 without any array library. Must not know Hugging Face key
names (model_config.py does) or kernels: a kernel is given lists of chunks and never a RoPE variant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from prism_gen.errors import UnsupportedError
from prism_gen.model import BAND_GRANULE_DIMS, RopeSpec, RopeVariant, SelectionSpec

_T = TypeVar("_T")

CHUNK_DIMS = 8  # contiguous dims a kernel loads at once: 16 bytes of bf16 or fp16
ATTENUATED_LOSS = 2.0**-8  # the unit roundoff of bf16: a smaller loss drowns in the rounding of q and k themselves
PAPER_HIGH_FRACTION = 1 / 2  # of head_dim: 64 of 128 dims, arXiv 2602.08426
PAPER_LOW_FRACTION = 3 / 4  # of head_dim: 96 of 128 dims, arXiv 2602.08426
YARN_BETA_FAST = 32.0  # rotations in the original context above which YaRN leaves a pair alone, arXiv 2309.00071
YARN_BETA_SLOW = 1.0  # rotations below which YaRN interpolates a pair fully, arXiv 2309.00071


class Bands(msgspec.Struct, frozen=True):
    """The head dims of each band, rising; the bands may overlap."""

    high_dims: tuple[int, ...]
    low_dims: tuple[int, ...]

    @property
    def high_chunks(self) -> tuple[int, ...]:
        """Chunks of the high band, rising; chunk c is dims 8c..8c+7."""
        return _chunks("high", self.high_dims)

    @property
    def low_chunks(self) -> tuple[int, ...]:
        """Chunks of the low band, rising; chunk c is dims 8c..8c+7."""
        return _chunks("low", self.low_dims)


def inv_freq(rope: RopeSpec, *, seq_len: int | None = None) -> tuple[float, ...]:
    """Angular frequency of each RoPE pair, radians per token.

    seq_len: tokens of the longest sequence; only "dynamic" and "longrope" depend on it. None means at most the
    original length, where dynamic scaling is off and longrope uses its short factors.
    Returns rotary_dim/2 values; none for a model without RoPE. Source: the definitions of transformers v5.
    """
    return _VARIANTS[rope.variant](rope, seq_len)


def longest_seq_len(rope: RopeSpec) -> int | None:
    """Tokens of the longest context the scaling was made for, where frequencies depend on it; else None.

    Bands are compiled in, and block-sparse prefill is for long prompts, so they follow the frequencies used there.
    """
    original = rope.original_max_position_embeddings
    if original is None or rope.variant not in ("dynamic", "longrope"):
        return None
    return max(original + 1, math.ceil(original * (rope.factor or 1.0)))


def attenuation(inv_freq: Sequence[float], block_size: int) -> tuple[float, ...]:
    """What is left of each pair after mean pooling over a block: the normalised Dirichlet kernel.

    inv_freq: radians per token. block_size: tokens. Returns one value in [0, 1] per pair; 1 where inv_freq is 0.
    Source: arXiv 2602.08426, the spectral analysis of mean pooling.
    """
    return tuple(_dirichlet(w, block_size) for w in inv_freq)


def governing_block_size(block_sizes: tuple[int, int]) -> int:
    """The block size (tokens) whose spectrum bounds the bands of (q tokens, k tokens) blocks: the larger.

    A pair enters a logit multiplied by the attenuation at both sizes, so it is lost where either factor is.
    """
    return max(block_sizes)


def bands(rope: RopeSpec, head_dim: int, selection: SelectionSpec, block_size: int) -> Bands:
    """The dims of the high and the low band, as whole chunks of 8 contiguous dims.

    block_size: tokens, governing_block_size() of a block pair; only mode "spectrum" depends on it. Dims that do
    not rotate have frequency 0 and always belong to the low band. An explicit high_freq_dim or low_freq_dim wins
    over both modes; "paper" takes 1/2 and 3/4 of head_dim, rounded up to a multiple of 16.
    Mode "spectrum": the low band is every pair that turns by less than one whole rotation in a block (w * b < 2 pi,
    before the first null of the Dirichlet kernel), rounded down to 16 dims: past the null the pooled value is a side
    lobe, whose sign means nothing. The high band is every pair that pooling attenuates by more than the rounding
    of bf16 (1 - attenuation > 2**-8), rounded up: those are what a calibration can restore. Gives the paper's 64 and
    96 dims for Llama-3.1 and Qwen3 at blocks of 128.
    Raises: UnsupportedError if a band is empty, too wide, or not a whole number of chunks.
    Source: arXiv 2602.08426; method.md step 2.
    """
    if rope.variant == "none" or rope.rotary_dim == 0:
        raise UnsupportedError(
            "a model without RoPE has no frequency bands",
            exists="RoPE variants: " + ", ".join(v for v in _VARIANTS if v != "none"),
            fix="run this model dense",
        )
    if head_dim % BAND_GRANULE_DIMS or rope.rotary_dim % (2 * CHUNK_DIMS):
        raise UnsupportedError(
            f"head_dim {head_dim} with rotary_dim {rope.rotary_dim} has no bands of whole chunks of {CHUNK_DIMS} dims",
            exists=f"head_dim a multiple of {BAND_GRANULE_DIMS}, rotary_dim a multiple of {2 * CHUNK_DIMS}",
            fix="run this model dense",
        )
    high_dim, low_dim = _band_dims(rope, head_dim, selection, block_size)
    unrotated = head_dim - rope.rotary_dim
    _check_width("high_freq_dim", high_dim, BAND_GRANULE_DIMS, rope.rotary_dim, "dims, of those that rotate")
    _check_width("low_freq_dim", low_dim, max(unrotated, BAND_GRANULE_DIMS), head_dim, "dims, all that do not rotate")
    high = _pair_dims(rope, range(high_dim // 2))
    low = _pair_dims(rope, range((head_dim - low_dim) // 2, rope.rotary_dim // 2))
    return Bands(tuple(sorted(high)), tuple(sorted([*low, *range(rope.rotary_dim, head_dim)])))


def pair_dims(rope: RopeSpec, pair: int) -> tuple[int, int]:
    """The two head dims that RoPE rotates together as `pair`."""
    return (2 * pair, 2 * pair + 1) if rope.interleaved else (pair, pair + rope.rotary_dim // 2)


def _band_dims(rope: RopeSpec, head_dim: int, selection: SelectionSpec, block_size: int) -> tuple[int, int]:
    if selection.bands == "spectrum":
        high, low = _spectrum_dims(rope, head_dim, block_size)
    else:
        high, low = _round_up(head_dim * PAPER_HIGH_FRACTION), _round_up(head_dim * PAPER_LOW_FRACTION)
    high, low = min(high, rope.rotary_dim), max(low, head_dim - rope.rotary_dim)
    return selection.high_freq_dim or high, selection.low_freq_dim or low


def _spectrum_dims(rope: RopeSpec, head_dim: int, block_size: int) -> tuple[int, int]:
    w = inv_freq(rope, seq_len=longest_seq_len(rope))
    lost = [1 - a > ATTENUATED_LOSS for a in attenuation(w, block_size)]
    past_null = [x * block_size >= 2 * math.pi for x in w]
    num_attenuated = max((p + 1 for p, is_lost in enumerate(lost) if is_lost), default=0)
    num_past_null = max((p + 1 for p, is_past in enumerate(past_null) if is_past), default=0)
    low = max(head_dim - _round_up(2 * num_past_null), BAND_GRANULE_DIMS)
    uncovered = head_dim - low  # rounding the low band down must leave no pair in neither band
    return max(_round_up(2 * num_attenuated), uncovered, BAND_GRANULE_DIMS), low


def _check_width(field: str, dim: int, least: int, most: int, what: str) -> None:
    if not least <= dim <= most:
        raise UnsupportedError(
            f"{field} {dim} does not fit this model",
            exists=f"{least} to {most} {what}",
            fix=f"choose a {field} in that range, or leave it out",
        )


def _pair_dims(rope: RopeSpec, pairs: Sequence[int]) -> list[int]:
    return [dim for p in pairs for dim in pair_dims(rope, p)]


def _round_up(dims: float) -> int:
    return math.ceil(dims / BAND_GRANULE_DIMS) * BAND_GRANULE_DIMS


def _chunks(band: str, dims: tuple[int, ...]) -> tuple[int, ...]:
    chunks = sorted({d // CHUNK_DIMS for d in dims})
    if dims != tuple(d for c in chunks for d in range(c * CHUNK_DIMS, (c + 1) * CHUNK_DIMS)):
        raise UnsupportedError(
            f"the {band} band {list(dims)} is not a whole number of chunks",
            exists=f"runs of {CHUNK_DIMS} contiguous dims, because a kernel loads {CHUNK_DIMS} at a time",
            fix="choose band dims that are multiples of 16",
        )
    return tuple(chunks)


def _dirichlet(w: float, block_size: int) -> float:
    denominator = block_size * math.sin(w / 2)
    return 1.0 if denominator == 0 else min(abs(math.sin(block_size * w / 2) / denominator), 1.0)


def _given(value: _T | None) -> _T:
    assert value is not None  # RopeSpec refuses a variant whose fields are missing
    return value


def _none(rope: RopeSpec, seq_len: int | None) -> tuple[float, ...]:
    return ()


def _geometric(theta: float, rotary_dim: int) -> tuple[float, ...]:
    return tuple(theta ** (-2 * p / rotary_dim) for p in range(rotary_dim // 2))


def _default(rope: RopeSpec, seq_len: int | None) -> tuple[float, ...]:
    return _geometric(rope.theta, rope.rotary_dim)


def _linear(rope: RopeSpec, seq_len: int | None) -> tuple[float, ...]:
    factor = _given(rope.factor)
    return tuple(w / factor for w in _default(rope, seq_len))


def _dynamic(rope: RopeSpec, seq_len: int | None) -> tuple[float, ...]:
    """NTK scaling of theta, growing with the sequence beyond the original length."""
    original, factor = _given(rope.original_max_position_embeddings), _given(rope.factor)
    stretch = factor * max(seq_len or original, original) / original - (factor - 1)
    exponent = rope.rotary_dim / max(rope.rotary_dim - 2, 1)  # one pair alone has frequency 1 under any theta
    return _geometric(rope.theta * stretch**exponent, rope.rotary_dim)


def _llama3(rope: RopeSpec, seq_len: int | None) -> tuple[float, ...]:
    """Long wavelengths are divided by factor, short ones kept, those between are blended by rotations made."""
    factor, original = _given(rope.factor), _given(rope.original_max_position_embeddings)
    low, high = _given(rope.low_freq_factor), _given(rope.high_freq_factor)

    def scaled(w: float) -> float:
        rotations = original * w / (2 * math.pi)  # in the original context
        kept = min(max((rotations - low) / (high - low), 0.0), 1.0)
        return (1 - kept) * w / factor + kept * w

    return tuple(scaled(w) for w in _default(rope, seq_len))


def _yarn(rope: RopeSpec, seq_len: int | None) -> tuple[float, ...]:
    """Pairs that turn often are kept, slow ones divided by factor, with a linear ramp over pairs between."""
    factor, original = _given(rope.factor), _given(rope.original_max_position_embeddings)

    def pair_of(rotations: float) -> float:
        return rope.rotary_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    start, end = pair_of(rope.beta_fast or YARN_BETA_FAST), pair_of(rope.beta_slow or YARN_BETA_SLOW)
    if rope.truncate:
        start, end = math.floor(start), math.ceil(end)
    start, end = max(start, 0), min(end, rope.rotary_dim - 1)
    width = end - start or 0.001  # transformers' guard against an empty ramp
    ramp = (min(max((p - start) / width, 0.0), 1.0) for p in range(rope.rotary_dim // 2))
    return tuple(w / factor * r + w * (1 - r) for w, r in zip(_default(rope, seq_len), ramp, strict=True))


def _longrope(rope: RopeSpec, seq_len: int | None) -> tuple[float, ...]:
    is_long = seq_len is not None and seq_len > _given(rope.original_max_position_embeddings)
    factors = _given(rope.long_factor if is_long else rope.short_factor)
    return tuple(w / f for w, f in zip(_default(rope, seq_len), factors, strict=True))


_VARIANTS: dict[RopeVariant, Callable[[RopeSpec, int | None], tuple[float, ...]]] = {
    "none": _none,
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
