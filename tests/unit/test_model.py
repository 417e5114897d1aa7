"""model.py: specs survive JSON, and refuse what contradicts itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from prism_gen.errors import ConfigError
from prism_gen.model import ModelSpec, RopeSpec, SelectionSpec
from prism_gen.model_config import load_model_config

LLAMA31 = load_model_config(Path(__file__).parents[1] / "models" / "llama-3.1-8b.json")


def test_a_spec_survives_json() -> None:
    assert msgspec.json.decode(msgspec.json.encode(LLAMA31), type=ModelSpec) == LLAMA31


def test_a_bad_value_in_json_is_refused_with_its_path() -> None:
    data = msgspec.to_builtins(LLAMA31)
    data["selection"]["low_freq_threshold"] = 2.0
    with pytest.raises(msgspec.ValidationError, match=r"low_freq_threshold is 2.0[\s\S]*\$\.selection"):
        msgspec.convert(data, ModelSpec)


def test_group_size_and_num_layers() -> None:
    assert (LLAMA31.group_size, LLAMA31.num_layers) == (4, 32)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_kv_heads": 5}, "num_kv_heads is 5"),
        ({"num_q_heads": 0}, "num_q_heads is 0"),
        ({"head_dim": 64}, "rotary_dim is 128"),
        ({"layer_kinds": ()}, "layer_kinds is"),
        ({"softmax_scale": 0.0}, "softmax_scale is 0.0"),
        ({"selection": SelectionSpec(high_freq_dim=144)}, "prism.high_freq_dim is 144"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_contradictory_model_is_refused(changes: dict[str, Any], words: str) -> None:
    fields = {name: getattr(LLAMA31, name) for name in ModelSpec.__struct_fields__}
    with pytest.raises(ConfigError, match=words):
        ModelSpec(**{**fields, **changes})


def test_longrope_needs_one_factor_per_pair() -> None:
    lists = {"long_factor": (1.0,) * 31, "short_factor": (1.0,) * 32}
    with pytest.raises(ConfigError, match="long_factor is a list of 31"):
        RopeSpec(variant="longrope", rotary_dim=64, original_max_position_embeddings=4096, **lists)  # type: ignore[arg-type]
