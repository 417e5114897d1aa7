"""model_config.py: what published configs mean, and what each bad one is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prism_gen.errors import ConfigError, UnsupportedError
from prism_gen.model import ModelSpec
from prism_gen.model_config import load_model_config, parse_block_size
from tests.unit.small_config import SMALL, write_config

MODELS = Path(__file__).parents[1] / "models"
# file -> q heads, kv heads, head_dim, layers, RoPE variant, theta
PUBLISHED = {
    "llama-3.1-8b": (32, 8, 128, 32, "llama3", 5e5),
    "llama-3.1-8b-v5": (32, 8, 128, 32, "llama3", 5e5),
    "qwen3-8b": (32, 8, 128, 36, "default", 1e6),
    "qwen3-8b-yarn": (32, 8, 128, 36, "yarn", 1e6),
    "smollm2-135m-instruct": (9, 3, 64, 30, "default", 1e5),
    "mistral-7b-v0.3": (32, 8, 128, 32, "default", 1e6),
    "qwen2.5-7b-instruct": (28, 4, 128, 28, "default", 1e6),
    "qwen2.5-7b-instruct-yarn": (28, 4, 128, 28, "yarn", 1e6),
}


def load(tmp_path: Path, changes: dict[str, Any], **options: Any) -> ModelSpec:
    """The spec of SMALL with `changes`; None removes a key."""
    path = write_config(tmp_path / "small.json", changes)
    return load_model_config(path, **options)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_config(name: str) -> None:
    model = load_model_config(MODELS / f"{name}.json")
    found = (model.num_q_heads, model.num_kv_heads, model.head_dim, model.num_layers, model.rope.variant)
    assert (*found, model.rope.theta) == PUBLISHED[name]
    assert (model.name, model.dtype, set(model.layer_kinds)) == (name, "bf16", {"full"})
    assert model.rope.rotary_dim == model.head_dim


def test_every_config_in_the_folder_is_tested() -> None:
    assert {path.stem for path in MODELS.glob("*.json")} == set(PUBLISHED)


def test_old_and_new_keys_give_the_same_rope() -> None:
    assert (
        load_model_config(MODELS / "llama-3.1-8b.json").rope == load_model_config(MODELS / "llama-3.1-8b-v5.json").rope
    )
    assert (
        load_model_config(MODELS / "qwen3-8b-yarn.json").rope
        == load_model_config(MODELS / "qwen2.5-7b-instruct-yarn.json").rope
    )


def test_llama3_scaling_fields_are_the_published_ones() -> None:
    rope = load_model_config(MODELS / "llama-3.1-8b.json").rope
    assert (rope.factor, rope.low_freq_factor, rope.high_freq_factor) == (8.0, 1.0, 4.0)
    assert rope.original_max_position_embeddings == 8192


def test_absent_head_dim_kv_heads_theta_and_name_are_implied(tmp_path: Path) -> None:
    model = load(tmp_path, {})
    assert (model.head_dim, model.num_kv_heads, model.rope.theta, model.name) == (64, 8, 10000.0, "small")


def test_a_file_called_config_is_named_after_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SMALL))
    assert load_model_config(folder / "config.json").name == "my-model"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"partial_rotary_factor": 0.5}, (32, False)),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}}, (16, False)),
        ({"model_type": "gpt_neox"}, (16, False)),
        ({"model_type": "gpt_neox", "rotary_pct": 1.0}, (64, False)),
        ({"model_type": "gptj", "rotary_dim": 32}, (32, True)),
        ({"model_type": "gptj", "hidden_size": 2048}, (64, True)),
        ({"model_type": "glm"}, (32, True)),
        ({"model_type": "cohere"}, (64, True)),
    ],
    ids=str,
)
def test_rotary_layout(tmp_path: Path, changes: dict[str, Any], expected: tuple[int, bool]) -> None:
    rope = load(tmp_path, changes).rope
    assert (rope.rotary_dim, rope.interleaved) == expected


@pytest.mark.parametrize(
    ("changes", "variant", "factor", "original"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 4}}, "linear", 4.0, 4096),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic", 2.0, 4096),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn", 2.0, 4096),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]}}, "default", None, None),
        ({"rope_scaling": {}}, "default", None, None),
        (
            {
                "rope_scaling": {"type": "su", "long_factor": [2.0] * 32, "short_factor": [1.0] * 32},
                "original_max_position_embeddings": 1024,
            },
            "longrope",
            4.0,
            1024,
        ),
        (
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                }
            },
            "linear",
            8.0,
            4096,
        ),
    ],
    ids=["linear", "dynamic", "yarn", "mrope", "empty", "su", "per-layer-type"],
)
def test_rope_scaling_forms(
    tmp_path: Path, changes: dict[str, Any], variant: str, factor: float | None, original: int | None
) -> None:
    rope = load(tmp_path, changes).rope
    assert (rope.variant, rope.factor, rope.original_max_position_embeddings) == (variant, factor, original)


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"sliding_window": 1024}, "ssss"),
        ({"sliding_window": 8192}, "ffff"),
        ({"sliding_window": 1024, "use_sliding_window": False}, "ffff"),
        ({"sliding_window": 1024, "use_sliding_window": True, "max_window_layers": 3}, "fffs"),
        ({"sliding_window": 1024, "sliding_window_pattern": 2}, "sfsf"),
        ({"sliding_window": 1024, "model_type": "exaone4", "sliding_window_pattern": "LLLG"}, "sssf"),
        ({"sliding_window": 1024, "model_type": "gemma2"}, "sfsf"),
        ({"layer_types": ["full_attention", *["sliding_attention"] * 3]}, "fsss"),
    ],
    ids=str,
)
def test_layer_kinds(tmp_path: Path, changes: dict[str, Any], kinds: str) -> None:
    assert "".join(kind[0] for kind in load(tmp_path, changes).layer_kinds) == kinds


def test_full_layers_of_a_model_that_rotates_only_sliding_ones_have_no_rope(tmp_path: Path) -> None:
    model = load(tmp_path, {"model_type": "cohere2", "sliding_window": 1024})
    assert (model.rope.variant, model.rope.rotary_dim) == ("none", 0)


def test_a_multimodal_config_is_read_through_its_text_config(tmp_path: Path) -> None:
    text = {key: value for key, value in SMALL.items() if key != "torch_dtype"}
    path = tmp_path / "vl.json"
    path.write_text(json.dumps({"text_config": text, "dtype": "float16", "prism": {"block_size": "64x64"}}))
    model = load_model_config(path)
    assert (model.num_q_heads, model.dtype, model.selection.block_sizes) == (8, "fp16", ((64, 64),))
    path.write_text(json.dumps({"text_config": {**text, "head_dim": -1}, "dtype": "float16"}))
    with pytest.raises(ConfigError, match=r"text_config\.head_dim is -1"):
        load_model_config(path)


@pytest.mark.parametrize(
    ("changes", "scale"),
    [({}, None), ({"query_pre_attn_scalar": 256}, 0.0625), ({"attention_multiplier": 0.01}, 0.01)],
    ids=["default", "gemma", "granite"],
)
def test_softmax_scale(tmp_path: Path, changes: dict[str, Any], scale: float | None) -> None:
    assert load(tmp_path, changes).softmax_scale == scale


def test_dtype_argument_wins_and_float32_needs_one(tmp_path: Path) -> None:
    assert load(tmp_path, {}, dtype="fp16").dtype == "fp16"
    assert load(tmp_path, {"torch_dtype": "float32"}, dtype="bf16").dtype == "bf16"
    with pytest.raises(ConfigError, match=r"torch_dtype is float32[\s\S]*--dtype bf16"):
        load(tmp_path, {"torch_dtype": "float32"})
    with pytest.raises(ConfigError, match="dtype is missing"):
        load(tmp_path, {"torch_dtype": None})
    with pytest.raises(UnsupportedError, match="fp8"):
        load(tmp_path, {}, dtype="fp8")


def test_prism_object(tmp_path: Path) -> None:
    prism = {
        "bands": "spectrum",
        "high_freq_dim": 32,
        "low_freq_dim": None,
        "block_sizes": ["128x64", [64, 64]],
        "high_freq_threshold": 0.9,
        "low_freq_threshold": 1,
        "force_sink": False,
        "fused_rope": True,
        "share": "group",
        "calibration": "prefix",
    }
    selection = load(tmp_path, {"prism": prism}).selection
    assert (selection.bands, selection.high_freq_dim, selection.low_freq_dim) == ("spectrum", 32, None)
    assert selection.block_sizes == ((128, 64), (64, 64))
    assert (selection.high_freq_threshold, selection.low_freq_threshold) == (0.9, 1.0)
    assert (selection.force_sink, selection.force_recent, selection.fused_rope) == (False, True, True)
    assert (selection.share, selection.calibration) == ("group", "prefix")


def test_prism_object_with_counts_and_a_capacity(tmp_path: Path) -> None:
    assert load(tmp_path, {}).selection.cut == "top_p"
    selection = load(tmp_path, {"prism": {"top_k": 16, "max_blocks": 64}}).selection
    assert (selection.cut, selection.top_k, selection.max_blocks) == ("top_k", 16, 64)
    selection = load(tmp_path, {"prism": {"density": 0.1, "top_k": None}}).selection
    assert (selection.cut, selection.density, selection.max_blocks) == ("density", 0.1, None)


def test_prism_object_of_the_subblock_estimator(tmp_path: Path) -> None:
    prism = {
        "estimator": "subblock",
        "sub_block_q": 4,
        "sub_block_k": None,
        "reduce": "mean",
        "exclude_forced": True,
        "threshold": 0.8,
        "share": "group",
        "block_size": "128x64",
    }
    selection = load(tmp_path, {"prism": prism}).selection
    assert (selection.estimator, selection.sub_block_q, selection.sub_block_k) == ("subblock", 4, None)
    assert (selection.reduce, selection.exclude_forced, selection.threshold) == ("mean", True, 0.8)
    assert load(tmp_path, {}).selection.estimator == "paper"


def test_block_sizes_argument_wins(tmp_path: Path) -> None:
    changes = {"prism": {"block_size": "64x64"}}
    assert load(tmp_path, changes, block_sizes=[(128, 64)]).selection.block_sizes == ((128, 64),)


@pytest.mark.parametrize("value", ["128x64", [128, 64], " 128x64 "])
def test_block_size_forms(value: Any) -> None:
    assert parse_block_size(value) == (128, 64)
    assert parse_block_size("64") == parse_block_size(64) == (64, 64)
