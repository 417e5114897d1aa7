"""How a Hugging Face model's layers rotate q and k, which of them slide, and which models are refused.

Owns what differs between model families: their defaults where a config.json is silent. Must not read files
(hf_config.py does); only model_config.py imports this file.
"""

from __future__ import annotations

from typing import Any, get_args

import msgspec

from prism_gen.errors import ConfigError, UnsupportedError
from prism_gen.hf_config import HFConfig, HFRope, JsonObject, decode, located
from prism_gen.model import LayerKind, RopeSpec, RopeVariant

DEFAULT_ROPE_THETA = 10000.0  # of RoFormer, and of every model older than the key

_ROPE_ALIASES = {
    "su": "longrope",  # Phi-3's first name for it
    "mrope": "default",  # a text token has the same position on every axis
}
# Model types whose code rotates dims (2p, 2p+1); all others rotate (p, p + rotary_dim/2).
_INTERLEAVED = {"gptj", "codegen", "glm", "glm4", "cohere", "helium", "ernie4_5", "ernie4_5_moe"}
# The share of head_dim that rotates where the config is silent: the default of the model's own code.
_PARTIAL_ROTARY = {
    "glm": 0.5,
    "glm4": 0.5,
    "glm4_moe": 0.5,
    "nemotron": 0.5,
    "phi": 0.5,
    "persimmon": 0.5,
    "gpt_neox": 0.25,
    "stablelm": 0.25,
}
_ROTARY_DIM = {"gptj": 64, "codegen": 64}  # the same for models that count dims
_LEARNED_POSITIONS = {"gpt2", "opt", "gpt_bigcode"}
_UNROTATED_FULL_LAYERS = {"cohere2", "exaone4"}  # where layers slide, only those rotate q and k
# Every n-th layer is full and the others slide, where the config has a window and is silent about layers.
_SLIDING_PATTERN = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4, "exaone4": 4, "olmo3": 4}
_LAYER_KINDS: dict[str, LayerKind] = {"full_attention": "full", "sliding_attention": "sliding"}
_UNSUPPORTED_MODELS = {
    "gpt_oss": "adds learned sinks to its softmax",
    "bloom": "adds ALiBi biases to its logits",
    "mpt": "adds ALiBi biases to its logits",
    "llama4": "attends within chunks in most layers",
    "llama4_text": "attends within chunks in most layers",
}


def refuse_unsupported(hf: HFConfig, at: str) -> None:
    """Raises UnsupportedError, naming the key that says so, for a model whose attention no kernel here computes."""
    reasons = {
        "model_type": _UNSUPPORTED_MODELS.get(hf.model_type),
        "kv_lora_rank": hf.kv_lora_rank and "means multi-head latent attention (MLA)",
        "attn_logit_softcapping": hf.attn_logit_softcapping and "bends the logits before the softmax",
        "alibi": hf.alibi and "adds biases to the logits",
        "is_encoder_decoder": hf.is_encoder_decoder and "means cross-attention",
        "attn_layer_period": hf.attn_layer_period and "means that most layers are no attention",
        "hybrid_override_pattern": hf.hybrid_override_pattern and "means that most layers are no attention",
        "no_rope_layers": 0 in (hf.no_rope_layers or ()) and "turns RoPE off in some layers: bands differ by layer",
    }
    for key, reason in reasons.items():
        if reason:
            raise UnsupportedError(
                f"{at}{key} is {getattr(hf, key)}, which {reason}",
                exists="decoders with plain causal softmax attention (multi-head, grouped or multi-query) and one RoPE",
                fix="run this model with its own attention",
            )


def layer_kinds(hf: HFConfig, num_layers: int, at: str) -> tuple[LayerKind, ...]:
    """What each layer attends to. Raises: ConfigError on a wrong length, UnsupportedError on another kind."""
    if hf.layer_types is not None:
        return _listed_kinds(hf.layer_types, num_layers, at)
    window = hf.sliding_window
    never_bites = window is not None and window >= (hf.max_position_embeddings or window + 1)
    if window is None or never_bites or hf.use_sliding_window is False:
        return (_kind(slides=False),) * num_layers
    pattern = hf.sliding_window_pattern or _SLIDING_PATTERN.get(hf.model_type)
    if pattern is not None:
        period = len(pattern) if isinstance(pattern, str) else pattern
        return tuple(_kind(slides=(i + 1) % period != 0) for i in range(num_layers))
    first = (hf.max_window_layers or 0) if hf.use_sliding_window else 0  # Qwen2: layers from here on slide
    return tuple(_kind(slides=i >= first) for i in range(num_layers))


def rope_spec(hf: HFConfig, head_dim: int, kinds: tuple[LayerKind, ...], at: str) -> RopeSpec:
    """The RoPE of the full layers, the only ones that run Prism.

    Raises: ConfigError if a value is missing or out of range, UnsupportedError if the type is unknown.
    """
    unrotated = hf.model_type in _UNROTATED_FULL_LAYERS and "sliding" in kinds
    if hf.model_type in _LEARNED_POSITIONS or unrotated:
        return RopeSpec(variant="none", rotary_dim=0)
    key, data = _rope_object(hf, at)
    at_rope = f"{at}{key}." if key else at
    rope = decode(data, HFRope, at=at_rope)
    variant = _variant(rope, at_rope)
    thetas = (rope.rope_theta, hf.rope_theta, hf.rotary_emb_base)
    with located(at_rope):
        return RopeSpec(
            variant=variant,
            theta=next((theta for theta in thetas if theta is not None), DEFAULT_ROPE_THETA),
            rotary_dim=_rotary_dim(hf, rope, head_dim),
            interleaved=hf.model_type in _INTERLEAVED,
            **_scaling(hf, rope, variant),
        )


def _kind(*, slides: bool) -> LayerKind:
    return "sliding" if slides else "full"


def _listed_kinds(layer_types: list[str], num_layers: int, at: str) -> tuple[LayerKind, ...]:
    if len(layer_types) != num_layers:
        asked = f"{at}layer_types lists {len(layer_types)} layers, num_hidden_layers is {num_layers}"
        raise ConfigError(asked, fix="give one layer type per layer")
    for i, layer_type in enumerate(layer_types):
        if layer_type not in _LAYER_KINDS:
            asked = f"{at}layer_types[{i}] is {layer_type!r}, a layer that prism-gen cannot describe"
            raise UnsupportedError(asked, exists=", ".join(_LAYER_KINDS), fix="run this model with its own attention")
    return tuple(_LAYER_KINDS[layer_type] for layer_type in layer_types)


def _rope_object(hf: HFConfig, at: str) -> tuple[str, JsonObject]:
    """The RoPE object of the full layers and its path; an empty one where the config has none.

    transformers v5 writes rope_parameters, for several layer types one object each; v4 wrote rope_scaling.
    """
    if not hf.rope_parameters:
        return ("rope_scaling", hf.rope_scaling) if hf.rope_scaling else ("", {})
    layer_types = [name for name, value in hf.rope_parameters.items() if isinstance(value, dict)]
    if not layer_types:
        return "rope_parameters", hf.rope_parameters
    if "full_attention" not in layer_types:
        asked = f"{at}rope_parameters has no full_attention, the layers that run Prism"
        raise ConfigError(asked, exists=", ".join(layer_types), fix="add the published full_attention object")
    return "rope_parameters.full_attention", hf.rope_parameters["full_attention"]


def _variant(rope: HFRope, at: str) -> RopeVariant:
    name = rope.rope_type or rope.type
    if name is None and rope.factor is not None:
        asked = f"{at}rope_type is missing beside factor {rope.factor}"
        raise ConfigError(asked, exists=", ".join(get_args(RopeVariant)), fix="add the published rope_type")
    name = _ROPE_ALIASES.get(name or "default", name or "default")
    for variant in get_args(RopeVariant):
        if name == variant:
            return variant  # type: ignore[no-any-return]  # get_args() is untyped
    exists = ", ".join([*get_args(RopeVariant), *_ROPE_ALIASES])
    fix = "add a function to prism_gen/rope.py, or run this model dense"
    raise UnsupportedError(f"{at}rope_type is {name!r}, an unknown RoPE variant", exists=exists, fix=fix)


def _rotary_dim(hf: HFConfig, rope: HFRope, head_dim: int) -> int:
    """Dims that rotate: of the RoPE object, the config, or the model's code, whichever speaks first."""
    fractions = (rope.partial_rotary_factor, hf.partial_rotary_factor, hf.rotary_pct)
    fraction = next((f for f in fractions if f is not None), None)
    if fraction is None and (hf.rotary_dim is not None or hf.model_type in _ROTARY_DIM):
        return hf.rotary_dim if hf.rotary_dim is not None else _ROTARY_DIM[hf.model_type]
    return int(head_dim * (fraction or _PARTIAL_ROTARY.get(hf.model_type, 1.0)))


def _scaling(hf: HFConfig, rope: HFRope, variant: RopeVariant) -> dict[str, Any]:
    """The scaling fields of RopeSpec that this variant uses, the implied ones made explicit as transformers does."""
    if variant in ("none", "default"):
        return {}
    fields = {f.name for f in msgspec.structs.fields(RopeSpec)} & {f.name for f in msgspec.structs.fields(HFRope)}
    given = {name: getattr(rope, name) for name in fields if getattr(rope, name) is not None}
    original = hf.original_max_position_embeddings or rope.original_max_position_embeddings
    if variant == "dynamic" or original is None:
        original = hf.max_position_embeddings  # dynamic scaling starts where the model's own length ends
    if original is not None:
        given["original_max_position_embeddings"] = original
        if variant in ("yarn", "longrope") and rope.factor is None and hf.max_position_embeddings is not None:
            given["factor"] = hf.max_position_embeddings / original
    return given
