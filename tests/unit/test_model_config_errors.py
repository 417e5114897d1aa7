"""model_config.py: every bad config is refused with the field, what was found, what is allowed and what to do."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from prism_gen.errors import ConfigError, PrismError, UnsupportedError
from prism_gen.model_config import load_model_config, parse_block_size
from tests.unit.small_config import write_config

LINEAR: dict[str, Any] = {"type": "linear", "factor": 2.0}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "heads-missing": ({"num_attention_heads": None}, "num_attention_heads is missing"),
    "heads-text": ({"num_attention_heads": "8"}, 'num_attention_heads is "8"'),
    "heads-zero": ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    "hidden-size": ({"hidden_size": 500}, "hidden_size 500 is not a multiple of num_attention_heads 8"),
    "kv-heads": ({"num_key_value_heads": 3}, "num_key_value_heads 3 does not divide num_attention_heads 8"),
    "layers": ({"num_hidden_layers": None}, "num_hidden_layers is missing"),
    "layer-types": ({"layer_types": ["full_attention"]}, "layer_types lists 1 layers, num_hidden_layers is 4"),
    "theta": ({"rope_theta": 0}, "rope_theta is 0"),
    "theta-nan": ({"rope_theta": math.nan}, "rope_theta is (nan|NaN)"),
    "partial": ({"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5"),
    "rotary-odd": ({"rotary_dim": 33}, "rotary_dim is 33"),
    "rotary-wide": ({"rotary_dim": 128}, "rotary_dim is 128"),
    "rope-no-type": ({"rope_scaling": {"factor": 2.0}}, "rope_scaling.rope_type is missing beside factor 2.0"),
    "rope-no-factor": ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is None"),
    "rope-factor": ({"rope_scaling": {**LINEAR, "factor": -1}}, "rope_scaling.factor is -1"),
    "rope-text": ({"rope_scaling": {**LINEAR, "factor": "2"}}, 'rope_scaling.factor is "2"'),
    "rope-list": (
        {"rope_scaling": {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}},
        "rope_scaling.long_factor is a list of 1",
    ),
    "rope-not-object": ({"rope_scaling": 4}, "rope_scaling is 4"),
    "rope-no-full": ({"rope_parameters": {"sliding_attention": {}}}, "rope_parameters has no full_attention"),
    "top-k-zero": ({"prism": {"top_k": 0}}, "prism.top_k is 0"),
    "density-above-one": ({"prism": {"density": 1.5}}, "prism.density is 1.5"),
    "two-counts": ({"prism": {"density": 0.5, "top_k": 4}}, "None beside top_k"),
    "no-capacity": ({"prism": {"max_blocks": -1}}, "prism.max_blocks is -1"),
    "threshold-nan": ({"prism": {"high_freq_threshold": math.nan}}, "prism.high_freq_threshold is nan"),
    "threshold-zero": ({"prism": {"low_freq_threshold": 0}}, "prism.low_freq_threshold is 0"),
    "threshold-above": ({"prism": {"low_freq_threshold": 1.01}}, "prism.low_freq_threshold is 1.01"),
    "band-16": ({"prism": {"high_freq_dim": 40}}, "prism.high_freq_dim is 40"),
    "band-wide": ({"prism": {"low_freq_dim": 80}}, "prism.low_freq_dim is 80"),
    "band-mode": ({"prism": {"bands": "papr"}}, "prism.bands is"),
    "estimator": ({"prism": {"estimator": "sub"}}, "prism.estimator is"),
    "sub-block": ({"prism": {"estimator": "subblock", "sub_block_q": 6}}, "prism.sub_block_q is 6"),
    "sub-block-divides": (
        {"prism": {"estimator": "auto", "sub_block_k": 16, "block_size": "64x24"}},
        "prism.sub_block_k is 16",
    ),
    "subblock-threshold": ({"prism": {"estimator": "subblock", "threshold": 0}}, "prism.threshold is 0"),
    "reduce": ({"prism": {"estimator": "subblock", "reduce": "sum"}}, "prism.reduce is"),
    "papers-threshold": (
        {"prism": {"estimator": "auto", "low_freq_threshold": 0.9}},
        "prism.low_freq_threshold is given, and estimator 'auto' does not read it",
    ),
    "subblocks-threshold": ({"prism": {"threshold": 0.9}}, "prism.threshold is given, and estimator 'paper'"),
    "unknown-key": ({"prism": {"treshold": 0.9}}, "prism.treshold is not a key"),
    "block-text": ({"prism": {"block_size": "128by64"}}, "prism.block size is '128by64'"),
    "block-triple": ({"prism": {"block_sizes": [[1, 2, 3]]}}, r"prism.block size is \[1, 2, 3\]"),
    "block-zero": ({"prism": {"block_size": "0x64"}}, "prism.block_sizes is"),
    "block-none": ({"prism": {"block_sizes": []}}, "prism.block_sizes is"),
    "block-twice": ({"prism": {"block_sizes": ["64x64", [64, 64]]}}, "prism.block_sizes is"),
    "block-both": ({"prism": {"block_size": 64, "block_sizes": [64]}}, "are both given"),
}
UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "mla": ({"kv_lora_rank": 512}, "kv_lora_rank is 512"),
    "rope-type": ({"rope_scaling": {"rope_type": "ntk", "factor": 2.0}}, "rope_scaling.rope_type is 'ntk'"),
    "soft-cap": ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
    "alibi": ({"alibi": True}, "alibi is True"),
    "sinks": ({"model_type": "gpt_oss"}, "model_type is gpt_oss"),
    "nope-layers": ({"no_rope_layers": [1, 1, 1, 0]}, "no_rope_layers is"),
    "linear-layer": ({"layer_types": ["linear_attention"] * 4}, r"layer_types\[0\] is 'linear_attention'"),
    "encoder-decoder": ({"is_encoder_decoder": True}, "is_encoder_decoder is True"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_value(tmp_path: Path, name: str) -> None:
    changes, words = BAD[name]
    with pytest.raises(ConfigError, match=words) as caught:
        load_model_config(write_config(tmp_path / "bad.json", changes))
    assert str(caught.value).startswith(str(tmp_path / "bad.json"))
    assert caught.value.fix


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_model(tmp_path: Path, name: str) -> None:
    changes, words = UNSUPPORTED[name]
    with pytest.raises(UnsupportedError, match=words) as caught:
        load_model_config(write_config(tmp_path / "bad.json", changes))
    assert caught.value.exists
    assert caught.value.fix


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"", "is not valid JSON"),
        (b'{"a": 1,}', "is not valid JSON.* at line 1"),
        (b"[1]", "holds a JSON list"),
        (b"\xff\xfe\x00", "is not UTF-8"),
    ],
    ids=["missing", "empty", "malformed", "list", "binary"],
)
def test_unreadable_file(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        load_model_config(path)


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_model_config(tmp_path)


@pytest.mark.parametrize("value", ["", "x64", "128x", "128x64x32", "-64", [64]])
def test_bad_block_size_text(value: Any) -> None:
    with pytest.raises(PrismError, match="block size is"):
        parse_block_size(value)
