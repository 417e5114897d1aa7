"""The keys of a Hugging Face config.json that matter here, read and typed, with errors that name the bad field.

Owns reading the file and the schema of its keys, the `prism` object among them. Must not decide what a key means:
model_config.py and hf_layers.py do, and nothing else imports this file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from prism_gen.errors import ConfigError
from prism_gen.model import BandMode, CalibrationMode, EstimatorName, Reduce, Share

JsonObject = dict[str, Any]
BlockSizeValue = str | int | list[int]
Positive = Annotated[int, msgspec.Meta(gt=0)]
Theta = Annotated[float, msgspec.Meta(gt=1)]  # the first pair turns by 1 radian a token, the others more slowly
Fraction = Annotated[float, msgspec.Meta(gt=0, le=1)]
_T = TypeVar("_T")


class HFRope(msgspec.Struct):
    """`rope_scaling`, `rope_parameters`, or one layer type's entry of the latter. Unknown keys are ignored."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: Theta | None = None
    factor: float | None = None
    original_max_position_embeddings: Positive | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    long_factor: tuple[float, ...] | None = None
    short_factor: tuple[float, ...] | None = None
    truncate: bool = True
    partial_rotary_factor: Fraction | None = None


class HFConfig(msgspec.Struct):
    """Keys of a decoder's config.json, old names beside new. Unknown keys are ignored."""

    model_type: str = ""
    name_or_path: str | None = msgspec.field(default=None, name="_name_or_path")
    num_attention_heads: Positive | None = None
    n_head: Positive | None = None
    num_key_value_heads: Positive | None = None
    num_kv_heads: Positive | None = None
    multi_query: bool = False
    hidden_size: Positive | None = None
    n_embd: Positive | None = None
    head_dim: Positive | None = None
    num_hidden_layers: Positive | None = None
    n_layer: Positive | None = None
    dtype: str | None = None
    torch_dtype: str | None = None
    max_position_embeddings: Positive | None = None
    query_pre_attn_scalar: float | None = None
    attention_multiplier: float | None = None
    # RoPE
    rope_theta: Theta | None = None
    rotary_emb_base: Theta | None = None
    rope_scaling: JsonObject | None = None
    rope_parameters: JsonObject | None = None
    original_max_position_embeddings: Positive | None = None
    partial_rotary_factor: Fraction | None = None
    rotary_pct: Fraction | None = None
    rotary_dim: Positive | None = None
    no_rope_layers: list[int] | None = None
    # Which layers attend how
    layer_types: list[str] | None = None
    sliding_window: Positive | None = None
    use_sliding_window: bool | None = None
    max_window_layers: int | None = None
    sliding_window_pattern: Positive | str | None = None
    # What attend does not compute
    kv_lora_rank: int | None = None
    attn_logit_softcapping: float | None = None
    alibi: bool = False
    is_encoder_decoder: bool = False
    attn_layer_period: int | None = None
    hybrid_override_pattern: str | None = None
    prism: JsonObject | None = None


class HFPrism(msgspec.Struct, forbid_unknown_fields=True):
    """The optional `prism` object: SelectionSpec as people write it; UNSET takes SelectionSpec's default."""

    bands: BandMode | UnsetType = UNSET
    high_freq_dim: int | UnsetType | None = UNSET
    low_freq_dim: int | UnsetType | None = UNSET
    share: Share | UnsetType = UNSET
    block_size: BlockSizeValue | UnsetType = UNSET
    block_sizes: list[BlockSizeValue] | UnsetType = UNSET
    high_freq_threshold: float | UnsetType = UNSET
    low_freq_threshold: float | UnsetType = UNSET
    force_sink: bool | UnsetType = UNSET
    force_recent: bool | UnsetType = UNSET
    fused_rope: bool | UnsetType = UNSET
    calibration: CalibrationMode | UnsetType = UNSET
    top_k: int | UnsetType | None = UNSET
    density: float | UnsetType | None = UNSET
    max_blocks: int | UnsetType | None = UNSET
    estimator: EstimatorName | UnsetType = UNSET
    sub_block_q: int | UnsetType | None = UNSET
    sub_block_k: int | UnsetType | None = UNSET
    reduce: Reduce | UnsetType = UNSET
    exclude_forced: bool | UnsetType = UNSET
    threshold: float | UnsetType = UNSET
    profile: str | JsonObject | UnsetType | None = UNSET


def read_json(path: Path) -> JsonObject:
    """The object in a JSON file. Raises: ConfigError if it is missing, unreadable, malformed, or no object."""
    try:
        # json, not msgspec: it reads the NaN that Python writes, so that the message can name the field that holds it.
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        fix = "give the path of a config.json as published with the model"
        raise ConfigError(f"{path} does not exist", fix=fix) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", fix="give a readable config.json") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text", fix="give a config.json, not a weights file") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ConfigError(f"{path} is not valid JSON: {error.msg} at {where}", fix="correct that place") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds a JSON {type(data).__name__}, not an object", fix="give a config.json")
    return data


def decode(data: JsonObject, schema: type[_T], *, at: str, keys: Sequence[str] = ()) -> _T:
    """`data` as a `schema`. at: file and path of the object, for messages. keys: what an unknown key could have been.

    Raises: ConfigError naming the field, what was found and what is allowed.
    """
    try:
        return msgspec.convert(data, schema)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        path = path.rstrip("`").lstrip(".")
        unknown = re.search(r"unknown field `(.*)`", message)
        if unknown:
            asked = f"{at}{unknown[1]} is not a key that prism-gen knows"
            raise ConfigError(asked, exists=", ".join(keys), fix="correct the key, or remove it") from None
        allowed = message.split(", got ")[0].replace("`", "").replace("Expected ", "")
        found = json.dumps(_value_at(data, path))
        fix = "use the value as published with the model"
        raise ConfigError(f"{at}{path} is {found}", exists=allowed, fix=fix) from None


@contextmanager
def located(at: str) -> Iterator[None]:
    """Puts `at`, file and path of an object, before a ConfigError that names a field of it."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{at}{error.asked}", exists=error.exists, fix=error.fix) from None


def _value_at(data: Any, path: str) -> Any:
    """The value at a msgspec error path such as `rope_scaling.factor`; the whole list where it ends in `[...]`."""
    for name in re.findall(r"[^.\[\]]+", path):
        data = data[name]
    return data
