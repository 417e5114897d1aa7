"""rope.py: frequencies against transformers and independent formulas, the Dirichlet kernel against a direct mean."""

from __future__ import annotations

import cmath
import itertools
import math
from typing import Any

import pytest

from prism_gen.errors import ConfigError, UnsupportedError
from prism_gen.model import RopeSpec, SelectionSpec
from prism_gen.rope import Bands, attenuation, bands, governing_block_size, inv_freq, longest_seq_len

LLAMA31 = RopeSpec(
    variant="llama3",
    theta=500000.0,
    rotary_dim=128,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)
QWEN3 = RopeSpec(theta=1e6, rotary_dim=128)
QWEN3_YARN = RopeSpec(variant="yarn", theta=1e6, rotary_dim=128, factor=4.0, original_max_position_embeddings=32768)
SMOLLM2 = RopeSpec(theta=1e5, rotary_dim=64)
LONGROPE = RopeSpec(
    variant="longrope",
    rotary_dim=96,
    factor=32.0,
    original_max_position_embeddings=4096,
    short_factor=tuple(1 + 0.02 * p for p in range(48)),
    long_factor=tuple(1 + 0.9 * p for p in range(48)),
)
DYNAMIC = RopeSpec(variant="dynamic", rotary_dim=128, factor=4.0, original_max_position_embeddings=4096)
CASES = {
    "default": (QWEN3, None),
    "smollm2": (SMOLLM2, None),
    "linear": (RopeSpec(variant="linear", rotary_dim=128, theta=1e5, factor=4.0), None),
    "dynamic-short": (DYNAMIC, None),
    "dynamic-long": (DYNAMIC, 10000),
    "llama3": (LLAMA31, None),
    "yarn": (QWEN3_YARN, None),
    "yarn-untruncated": (
        RopeSpec(
            variant="yarn",
            theta=150000.0,
            rotary_dim=64,
            factor=32.0,
            original_max_position_embeddings=4096,
            beta_fast=16.0,
            beta_slow=2.0,
            truncate=False,
        ),
        None,
    ),
    "longrope-short": (LONGROPE, 4096),
    "longrope-long": (LONGROPE, 4097),
}
# transformers 5.23.0, ROPE_INIT_FUNCTIONS in float32 on a CPU, 2026-11-23: pair -> radians per token.
GOLDEN = {
    "llama3": {0: 1, 16: 0.037606031, 29: 0.0021665706, 32: 0.00052484602, 38: 5.165907e-05, 63: 3.0689259e-07},
    "yarn": {0: 1, 16: 0.031622779, 29: 0.0014051124, 32: 0.00060294115, 38: 9.2623013e-05, 63: 3.1023444e-07},
    "dynamic-long": {0: 1, 16: 0.061535839, 29: 0.0063869683, 32: 0.0037866598, 38: 0.001331004, 63: 1.7068372e-05},
    "longrope-long": {0: 1, 12: 0.0084745763, 21: 0.00089360779, 30: 0.00011293849, 47: 2.797985e-06},
}


def transformers_inv_freq(rope: RopeSpec, seq_len: int | None) -> list[float]:
    """The same frequencies as transformers computes them, float32."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    fields = {name: getattr(rope, name) for name in rope.__struct_fields__}
    parameters: dict[str, Any] = {"rope_type": rope.variant, "rope_theta": rope.theta, "truncate": rope.truncate}
    skipped = {"variant", "theta", "rotary_dim", "interleaved", "truncate"}
    parameters |= {name: value for name, value in fields.items() if name not in skipped and value is not None}
    length = rope.original_max_position_embeddings or 8192
    config = transformers.LlamaConfig(
        head_dim=rope.rotary_dim, max_position_embeddings=length, rope_parameters=parameters
    )
    if rope.variant == "default":
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        return list(LlamaRotaryEmbedding.compute_default_rope_parameters(config)[0].tolist())
    return list(ROPE_INIT_FUNCTIONS[rope.variant](config, "cpu", seq_len=seq_len)[0].tolist())


@pytest.mark.parametrize("name", CASES)
def test_inv_freq_equals_transformers(name: str) -> None:
    rope, seq_len = CASES[name]
    assert inv_freq(rope, seq_len=seq_len) == pytest.approx(transformers_inv_freq(rope, seq_len), rel=2e-6)


@pytest.mark.parametrize("name", GOLDEN)
def test_inv_freq_equals_golden_numbers(name: str) -> None:
    rope, seq_len = CASES[name]
    ours = inv_freq(rope, seq_len=seq_len)
    assert [ours[p] for p in GOLDEN[name]] == pytest.approx(list(GOLDEN[name].values()), rel=2e-6)


def test_default_frequencies_fall_from_one_radian_to_almost_one_over_theta() -> None:
    w = inv_freq(QWEN3)
    assert len(w) == 64
    assert [w[0], w[32]] == pytest.approx([1.0, 1e-3])
    assert all(a > b for a, b in itertools.pairwise(w))


def test_a_model_without_rope_has_no_frequencies() -> None:
    assert inv_freq(RopeSpec(variant="none", rotary_dim=0)) == ()


def test_only_length_dependent_variants_have_a_longest_length() -> None:
    assert longest_seq_len(QWEN3_YARN) is None
    assert longest_seq_len(DYNAMIC) == 4 * 4096
    assert longest_seq_len(LONGROPE) == 32 * 4096


@pytest.mark.parametrize("block_size", [1, 8, 64, 128])
def test_attenuation_is_the_magnitude_of_a_mean_of_rotations(block_size: int) -> None:
    w = inv_freq(LLAMA31)
    direct = [abs(sum(cmath.exp(1j * x * t) for t in range(block_size))) / block_size for x in w]
    assert attenuation(w, block_size) == pytest.approx(direct, abs=1e-12)


def test_attenuation_of_a_dim_that_does_not_rotate_is_one() -> None:
    assert attenuation((0.0,), 128) == (1.0,)


@pytest.mark.parametrize(("rope", "pair"), [(QWEN3, 14), (LLAMA31, 14.7)])
def test_first_null_lies_where_the_method_says(rope: RopeSpec, pair: float) -> None:
    predicted = 128 * math.log(128 / (2 * math.pi)) / math.log(rope.theta) / 2
    assert predicted == pytest.approx(pair, abs=0.1)
    left = attenuation(inv_freq(rope), 128)
    side_lobes, main_lobe = left[: math.floor(predicted) + 1], left[math.floor(predicted) + 1 :]
    assert max(side_lobes) < 0.22  # the first side lobe of a Dirichlet kernel reaches 0.217
    assert list(main_lobe) == sorted(main_lobe)
    assert main_lobe[-1] > 0.999


@pytest.mark.parametrize("block_size", [64, 128])
@pytest.mark.parametrize("rope", [QWEN3, LLAMA31, QWEN3_YARN], ids=["qwen3", "llama3.1", "qwen3-yarn"])
def test_spectrum_reduces_to_the_papers_split(rope: RopeSpec, block_size: int) -> None:
    spectrum = bands(rope, 128, SelectionSpec(bands="spectrum"), block_size)
    assert spectrum == bands(rope, 128, SelectionSpec(), block_size)
    assert (len(spectrum.high_dims), len(spectrum.low_dims)) == (64, 96)


@pytest.mark.parametrize(("block_size", "widths"), [(64, (32, 48)), (128, (48, 32))])
def test_spectrum_of_a_small_theta_needs_more_high_dims(block_size: int, widths: tuple[int, int]) -> None:
    split = bands(SMOLLM2, 64, SelectionSpec(bands="spectrum"), block_size)
    assert (len(split.high_dims), len(split.low_dims)) == widths


def test_spectrum_follows_the_block_size() -> None:
    widths = {b: bands(QWEN3, 128, SelectionSpec(bands="spectrum"), b) for b in (16, 128, 1024)}
    assert len(widths[16].low_dims) > len(widths[128].low_dims) > len(widths[1024].low_dims)
    assert len(widths[16].high_dims) < len(widths[128].high_dims) < len(widths[1024].high_dims)


@pytest.mark.parametrize("mode", ["paper", "spectrum"])
@pytest.mark.parametrize("block_size", [1, 8, 64, 128, 4096])
@pytest.mark.parametrize("theta", [10.0, 1e4, 1e6, 1e9])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(64, 64), (64, 16), (80, 32), (96, 96), (128, 32), (256, 64)])
@pytest.mark.parametrize("interleaved", [False, True])
def test_bands_are_whole_chunks_and_hold_every_unrotated_dim(
    mode: Any, block_size: int, theta: float, *, head_dim: int, rotary_dim: int, interleaved: bool
) -> None:
    rope = RopeSpec(theta=theta, rotary_dim=rotary_dim, interleaved=interleaved)
    split = bands(rope, head_dim, SelectionSpec(bands=mode), block_size)
    assert split.high_chunks
    assert split.low_chunks
    assert [d for c in split.low_chunks for d in range(8 * c, 8 * c + 8)] == list(split.low_dims)
    assert set(range(rotary_dim, head_dim)) <= set(split.low_dims)
    assert max(split.high_dims) < rotary_dim
    assert set(split.high_dims) | set(split.low_dims) == set(range(head_dim))


def test_half_split_bands_of_the_paper() -> None:
    split = bands(QWEN3, 128, SelectionSpec(), 128)
    assert split.high_dims == (*range(32), *range(64, 96))
    assert split.low_dims == (*range(16, 64), *range(80, 128))
    assert split.high_chunks == (0, 1, 2, 3, 8, 9, 10, 11)
    assert split.low_chunks == (2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14, 15)


def test_interleaved_bands_of_the_paper() -> None:
    rope = RopeSpec(rotary_dim=128, interleaved=True)
    split = bands(rope, 128, SelectionSpec(), 128)
    assert (split.high_dims, split.low_dims) == (tuple(range(64)), tuple(range(32, 128)))


def test_paper_fractions_are_rounded_up_to_sixteen() -> None:
    split = bands(RopeSpec(rotary_dim=80), 80, SelectionSpec(), 128)
    assert (len(split.high_dims), len(split.low_dims)) == (48, 64)


def test_explicit_dims_win_over_the_mode() -> None:
    selection = SelectionSpec(bands="spectrum", high_freq_dim=32, low_freq_dim=112)
    split = bands(QWEN3, 128, selection, 128)
    assert (len(split.high_dims), len(split.low_dims)) == (32, 112)


def test_the_larger_block_of_a_pair_governs() -> None:
    assert governing_block_size((128, 64)) == governing_block_size((64, 128)) == 128


@pytest.mark.parametrize(
    ("rope", "head_dim", "selection", "words"),
    [
        (RopeSpec(variant="none", rotary_dim=0), 64, SelectionSpec(), "no frequency bands"),
        (RopeSpec(rotary_dim=24), 96, SelectionSpec(), "rotary_dim 24"),
        (RopeSpec(rotary_dim=72), 72, SelectionSpec(), "head_dim 72"),
        (RopeSpec(rotary_dim=32), 128, SelectionSpec(high_freq_dim=64), "16 to 32 dims"),
        (RopeSpec(rotary_dim=32), 128, SelectionSpec(low_freq_dim=64), "96 to 128 dims"),
    ],
    ids=["no-rope", "split-chunk", "odd-head-dim", "high-too-wide", "low-too-narrow"],
)
def test_impossible_bands_are_refused(rope: RopeSpec, head_dim: int, selection: SelectionSpec, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        bands(rope, head_dim, selection, 128)


def test_dims_that_are_no_whole_chunk_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="not a whole number of chunks"):
        _ = Bands(tuple(range(4, 12)), tuple(range(8))).high_chunks


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rotary_dim": 63}, "rotary_dim is 63"),
        ({"rotary_dim": 64, "theta": math.nan}, "rope_theta is nan"),
        ({"rotary_dim": 64, "variant": "linear"}, "factor is None"),
        ({"rotary_dim": 64, "variant": "linear", "factor": 0.0}, "factor is 0.0"),
        ({"rotary_dim": 64, "variant": "yarn", "factor": 2.0}, "original_max_position_embeddings is None"),
    ],
    ids=["odd", "nan-theta", "no-factor", "zero-factor", "no-length"],
)
def test_a_contradictory_rope_spec_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RopeSpec(**fields)
