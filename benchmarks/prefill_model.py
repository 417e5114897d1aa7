"""A transformers model of random weights whose attention is timed layer by layer, dense or sparse.

Owns the model and the attention functions that it is run with. Must not choose lengths or report.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM
from transformers.masking_utils import AttentionMaskInterface

from prism_gen.bench.peers.problem import missing
from prism_gen.integrations.layer import prism_attention
from prism_gen.integrations.lazy_mask import prism_mask

AttentionFunction = Callable[..., tuple[Tensor, Any]]
QKV = tuple[Tensor, Tensor, Tensor]


def random_model(config: Path, device: torch.device, *, num_layers: int | None = None) -> Any:
    """The model of a config.json in bf16, its weights as transformers initialises them. num_layers: fewer of them."""
    fields = json.loads(config.read_text(encoding="utf-8"))
    if num_layers is not None:
        fields.update(num_hidden_layers=num_layers, layer_types=None, max_window_layers=num_layers)
    described = AutoConfig.for_model(**fields)
    torch.manual_seed(0)
    with device:
        model: Any = AutoModelForCausalLM.from_config(described, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    return model.eval()


def compile_rest(model: Any) -> None:
    """torch.compile for the norms and MLPs of every layer, whose many small kernels are most of what is not a product.

    One graph serves all layers and, after the second, all lengths.
    """
    for layer in model.get_decoder().layers:
        for module in layer.modules():
            if type(module).__name__.endswith(("RMSNorm", "MLP")):
                module.compile(dynamic=True)


def heads_second(qkv: QKV) -> QKV:
    """[batch, heads, tokens, head_dim] as [batch, tokens, heads, head_dim], and back."""
    q, k, v = (x.transpose(1, 2) for x in qkv)
    return q, k, v


def torch_dense(backend: SDPBackend) -> Callable[[QKV, float | None], Tensor]:
    """Dense causal attention by one backend of torch: q, k, v with heads before tokens, out after."""

    def run(qkv: QKV, scale: float | None) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(*qkv, is_causal=True, enable_gqa=True, scale=scale).transpose(1, 2)

    return run


def fa4_dense(qkv: QKV, scale: float | None) -> Tensor:
    """FlashAttention-4's dense kernel."""
    from flash_attn.cute.interface import _flash_attn_fwd  # noqa: PLC0415 optional peers import lazily

    q, k, v = heads_second(qkv)
    out: Tensor = _flash_attn_fwd(q, k, v, softmax_scale=scale or q.shape[-1] ** -0.5, causal=True)[0]
    return out


def dense_kernels() -> dict[str, Callable[[QKV, float | None], Tensor]]:
    """Every dense kernel that can be had here, by name."""
    found = {"cudnn": torch_dense(SDPBackend.CUDNN_ATTENTION), "flash2": torch_dense(SDPBackend.FLASH_ATTENTION)}
    return found if missing("flash_attn") else {**found, "fa4": fa4_dense}


class Clock:
    """Registers attention functions under names of their own and times each of their calls with CUDA events."""

    def __init__(self) -> None:
        self._spans: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self.seen: Callable[[Any, QKV], None] | None = None

    def register_dense(self, name: str, kernel: Callable[[QKV, float | None], Tensor]) -> str:
        """`kernel` as an attention implementation; its name, without "flash", which transformers takes for its own."""

        def attention(
            module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
        ) -> tuple[Tensor, None]:
            return kernel((query, key, value), options.get("scaling")), None

        return self._register(f"timed_{name.replace('flash', 'fa')}", attention, lambda **options: None)

    def register_prism(self) -> str:
        """The attention of prism_gen.enable, timed."""
        return self._register("timed_prism", prism_attention, prism_mask)

    def _register(self, name: str, function: AttentionFunction, mask: Callable[..., Any]) -> str:
        def attention(
            module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
        ) -> tuple[Tensor, Any]:
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            before.record()
            result = function(module, query, key, value, attention_mask, **options)
            after.record()
            self._spans.append((before, after))
            if self.seen is not None:
                self.seen(module, (query, key, value))
            return result

        AttentionInterface.register(name, attention)
        AttentionMaskInterface.register(name, mask)
        return name

    def take_ms(self) -> list[float]:
        """Milliseconds of each call since it was last asked; waits for the device."""
        torch.cuda.synchronize()
        spans, self._spans = self._spans, []
        return [before.elapsed_time(after) for before, after in spans]


@torch.no_grad()
def first_token(model: Any, ids: Tensor) -> Tensor:
    """The logits of the first new token, the KV cache filled: what time to first token means."""
    logits: Tensor = model(ids, use_cache=True, logits_to_keep=1).logits
    return logits
