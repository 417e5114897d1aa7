"""Hugging Face config.json -> ModelSpec.

Owns shapes, dtype and the `prism` object (hf_config.py holds key names and types, hf_layers.py RoPE and layer
kinds). Must not know kernels: a spec that parses may still have no schedule.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from prism_gen.dtypes import dtype as dtype_row
from prism_gen.errors import ConfigError
from prism_gen.hf_config import BlockSizeValue, HFConfig, HFPrism, JsonObject, decode, located, read_json
from prism_gen.hf_layers import layer_kinds, refuse_unsupported, rope_spec
from prism_gen.model import ModelSpec, SelectionSpec
from prism_gen.profile import decode_profile, read_profile

_DTYPES = {"bfloat16": "bf16", "float16": "fp16"}
_PAPER_KEYS = (
    "bands",
    "high_freq_dim",
    "low_freq_dim",
    "high_freq_threshold",
    "low_freq_threshold",
    "calibration",
)  # keys of `prism` that only the paper's estimator reads
_SUBBLOCK_KEYS = ("sub_block_q", "sub_block_k", "reduce", "exclude_forced", "threshold")


def load_model_config(
    path: Path, *, block_sizes: Sequence[tuple[int, int]] | None = None, dtype: str | None = None
) -> ModelSpec:
    """The model that a config.json describes: parse_model_config of the file.

    Raises: ConfigError if the file is missing or malformed; what parse_model_config raises.
    """
    name = path.resolve().parent.name if path.stem == "config" else path.stem
    data, folder = read_json(path), path.parent
    return parse_model_config(data, where=str(path), name=name, block_sizes=block_sizes, dtype=dtype, folder=folder)


def parse_model_config(
    data: JsonObject,
    *,
    where: str,
    name: str,
    block_sizes: Sequence[tuple[int, int]] | None = None,
    dtype: str | None = None,
    folder: Path | None = None,
) -> ModelSpec:
    """The model that the object of a config.json describes.

    where: what to call the object in errors. name: for a config that does not say its own. block_sizes: (q tokens, k
    tokens), over the config's `prism.block_sizes`. dtype: "bf16" or "fp16", over the config's own. folder: that
    `prism.profile` is relative to. A multimodal config is read through its text_config.
    Raises: ConfigError if it is contradictory; UnsupportedError if the model computes attention in a way that no kernel
    here does.
    """
    data, at = _text_object(data, f"{where}: ")
    hf = decode(data, HFConfig, at=at)
    refuse_unsupported(hf, at)
    head_dim = _head_dim(hf, at)
    kinds = layer_kinds(hf, _required(hf, "num_hidden_layers", "n_layer", at=at), at)
    rope = rope_spec(hf, head_dim, kinds, at)
    num_q_heads = _required(hf, "num_attention_heads", "n_head", at=at)
    selection = selection_spec(hf.prism or {}, block_sizes=block_sizes, at=f"{at}prism.", folder=folder)
    with located(at):
        return ModelSpec(
            name=(hf.name_or_path or "").rstrip("/").rpartition("/")[2] or name,
            num_q_heads=num_q_heads,
            num_kv_heads=_num_kv_heads(hf, num_q_heads, at),
            head_dim=head_dim,
            dtype=dtype_row(dtype).name if dtype else _dtype(hf, at),
            rope=rope,
            selection=selection,
            layer_kinds=kinds,
            softmax_scale=_softmax_scale(hf),
        )


def parse_block_size(value: BlockSizeValue) -> tuple[int, int]:
    """(q tokens, k tokens) from "128x64", [128, 64], "128" or 128 (both sizes). Raises: ConfigError."""
    if isinstance(value, int):
        return value, value
    if isinstance(value, list) and len(value) == 2:
        return value[0], value[1]
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", value.strip()) if isinstance(value, str) else None
    if match is None:
        allowed = '"QxK" in tokens such as "128x64", or a pair [q, k]'
        raise ConfigError(f"block size is {value!r}", exists=allowed, fix="write it in one of these forms")
    return int(match[1]), int(match[2] or match[1])


def selection_spec(
    prism: JsonObject,
    *,
    block_sizes: Sequence[tuple[int, int]] | None = None,
    at: str = "",
    folder: Path | None = None,
) -> SelectionSpec:
    """The selection that a config's `prism` object describes.

    block_sizes: (q tokens, k tokens), over the object's own. at: what to put before a key in errors. folder: that the
    path of a profile is relative to; default the current one.
    Raises: ConfigError naming the key, what was found and what is allowed.
    """
    keys = [field.name for field in msgspec.structs.fields(HFPrism)]
    decoded = msgspec.structs.asdict(decode(prism, HFPrism, at=at, keys=keys))
    given: dict[str, Any] = {key: value for key, value in decoded.items() if value is not msgspec.UNSET}
    one, several = given.pop("block_size", None), given.pop("block_sizes", None)
    if one is not None and several is not None:
        raise ConfigError(f"{at}block_size and {at}block_sizes are both given", fix="keep one of them")
    _refuse_unread(given, at)
    profile = given.pop("profile", None)
    if isinstance(profile, str):
        given["profile"] = read_profile((folder or Path()) / profile)
    elif profile is not None:
        given["profile"] = decode_profile(json.dumps(profile).encode(), where=f"{at}profile")
    with located(at):
        if block_sizes is not None:
            given["block_sizes"] = tuple(block_sizes)
        elif one is not None or several is not None:
            given["block_sizes"] = tuple(parse_block_size(value) for value in (several if one is None else [one]))
        return SelectionSpec(**given)


def _text_object(data: JsonObject, at: str) -> tuple[JsonObject, str]:
    """The object that describes the language model, its dtype and `prism` taken from around it, and its path."""
    text = data.get("text_config")
    if not isinstance(text, dict) or "num_attention_heads" in data:
        return data, at
    outer = {key: data[key] for key in ("dtype", "torch_dtype", "prism", "_name_or_path") if data.get(key) is not None}
    if "dtype" in text or "torch_dtype" in text:
        outer = {key: value for key, value in outer.items() if key not in ("dtype", "torch_dtype")}
    return {**text, **outer}, f"{at}text_config."


def _required(hf: HFConfig, *keys: str, at: str) -> int:
    """The value of the first of `keys`, newest name first, that is given. Raises: ConfigError if none is."""
    for key in keys:
        value: int | None = getattr(hf, key)
        if value is not None:
            return value
    raise ConfigError(f"{at}{keys[0]} is missing", exists=" or ".join(keys), fix="give a decoder's config.json")


def _head_dim(hf: HFConfig, at: str) -> int:
    if hf.head_dim is not None:
        return hf.head_dim
    hidden, heads = _required(hf, "hidden_size", "n_embd", at=at), _required(hf, "num_attention_heads", "n_head", at=at)
    if hidden % heads:
        raise ConfigError(
            f"{at}hidden_size {hidden} is not a multiple of num_attention_heads {heads}",
            fix="add head_dim, or correct one of the two",
        )
    return hidden // heads


def _num_kv_heads(hf: HFConfig, num_q_heads: int, at: str) -> int:
    if hf.multi_query:
        return 1
    num_kv_heads = hf.num_key_value_heads or hf.num_kv_heads or num_q_heads
    if num_q_heads % num_kv_heads:
        allowed = ", ".join(str(n) for n in range(1, num_q_heads + 1) if num_q_heads % n == 0)
        asked = f"{at}num_key_value_heads {num_kv_heads} does not divide num_attention_heads {num_q_heads}"
        raise ConfigError(asked, exists=allowed, fix="correct one of the two")
    return num_kv_heads


def _dtype(hf: HFConfig, at: str) -> str:
    key = "torch_dtype" if hf.dtype is None and hf.torch_dtype is not None else "dtype"
    found = (hf.dtype or hf.torch_dtype or "").removeprefix("torch.")
    if found not in _DTYPES:
        asked = f"{at}{key} is {found or 'missing'}, and kernels read 16-bit q, k and v"
        fix = "name the dtype that attention will run in: --dtype bf16 (or fp16)"
        raise ConfigError(asked, exists=", ".join(_DTYPES), fix=fix)
    return _DTYPES[found]


def _softmax_scale(hf: HFConfig) -> float | None:
    if hf.attention_multiplier is not None:
        return hf.attention_multiplier
    return hf.query_pre_attn_scalar**-0.5 if hf.query_pre_attn_scalar else None


def _refuse_unread(given: dict[str, Any], at: str) -> None:
    """Raises: ConfigError for a key that the chosen estimator would ignore in silence."""
    estimator = given.get("estimator", SelectionSpec().estimator)
    own, others = (_PAPER_KEYS, _SUBBLOCK_KEYS) if estimator == "paper" else (_SUBBLOCK_KEYS, _PAPER_KEYS)
    for key in others:
        if key in given:
            asked = f"{at}{key} is given, and estimator {estimator!r} does not read it"
            other = "subblock" if estimator == "paper" else "paper"
            fix = f"remove it, or choose estimator {other!r}"
            raise ConfigError(asked, exists=", ".join(own), fix=fix)
