"""One attention layer of a transformers model under Prism: sparse where it may be, dense everywhere else, and counted.

Owns the choice for each call and its reason. Must not resolve kernels (transformers.py does) or make masks.
"""

from __future__ import annotations

import inspect
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from prism_gen.errors import UnsupportedError
from prism_gen.integrations.kept_keys import KeptKeys
from prism_gen.integrations.lazy_mask import LazyMask, Segment
from prism_gen.runtime import ops
from prism_gen.runtime.attention import PrismAttention
from prism_gen.runtime.results import Stats

SPARSE = "sparse"
# Arguments of an attention function that change what it computes, and that torch's own attention does not know.
EAGER_ONLY = ("softcap", "s_aux")
OTHER_SOFTMAX = (*EAGER_ONLY, "position_bias")
ATTRIBUTE = "prism_layer"  # where an attention module keeps its PrismLayer


class PrismLayer:
    """What an attention module needs to run sparse: kernels, and pooled keys for each KV cache."""

    def __init__(
        self,
        index: int,
        attention: PrismAttention | None,
        *,
        kernels: str = "",
        why_dense: str = "",
        min_queries: int = 2,
        min_keys: int = 0,
        keep_stats: bool = False,
    ) -> None:
        """index: the module's layer_idx. attention: None for a layer that is always dense, for the reason why_dense.

        kernels: the name under which ops.py knows the attention. min_queries, min_keys: shorter passes are dense, and
        passes over shorter sequences. keep_stats: of the last sparse pass, in `stats`, one for each call of it; not of
        passes inside a compiled graph.
        """
        self.index = index
        self.attention = attention
        self.kernels = kernels
        self.why_dense = why_dense
        self.min_queries = min_queries
        self.min_keys = min_keys
        self.keep_stats = keep_stats
        self.stats: list[Stats] = []
        self._eager_calls: Counter[str] = Counter()
        self._kept = KeptKeys(index)
        self._cache: Any = None
        self._hooks: list[RemovableHandle] = []

    def attach(self, module: nn.Module) -> None:
        """Makes this the layer of an attention module, in place of any other."""
        before: PrismLayer | None = getattr(module, ATTRIBUTE, None)
        if before is not None:
            before.detach()
        setattr(module, ATTRIBUTE, self)
        self._hooks.append(module.register_forward_pre_hook(self.before_forward, with_kwargs=True))

    def detach(self) -> None:
        """Stops watching the modules that it was attached to."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> PrismLayer:
        """A copied model shares kernels and counters with the original: neither holds anything of its weights."""
        return self

    def calls(self) -> Counter[str]:
        """Calls so far: "sparse", or "dense: " and the reason. Dense calls inside a compiled graph are not seen."""
        calls = Counter(self._eager_calls)
        if self.kernels:
            calls[SPARSE] += ops.runs(self.kernels)
        return calls

    def before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook of the attention module: the attention function itself is not told the KV cache."""
        if torch.compiler.is_compiling():
            return
        cache = kwargs.get("cache", kwargs.get("past_key_values"))  # the latter before transformers 5.2x
        self._cache = cache if hasattr(cache, "layers") else None
        if self._cache is not None:
            self._kept.before(self._cache)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: LazyMask, scaling: float | None) -> Tensor:
        """Sparse attention over the segments of `mask`; padded queries give 0.

        query: [batch, num_q_heads, queries, head_dim]; key, value: [batch, num_kv_heads, keys or more, head_dim].
        Returns [batch, queries, num_q_heads, head_dim]. Raises: TensorError, DeviceError.
        """
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        segments = mask.segments or ()
        self.stats = []
        whole = len(segments) == 1 and segments[0].rows == slice(0, q.shape[0])
        if whole and segments[0].queries == slice(0, q.shape[1]):
            keys = segments[0].keys
            return self._run(q, k[:, keys], v[:, keys], segments[0], scaling)
        out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
        for segment in segments:
            rows, queries, keys = segment
            out[rows, queries] = self._run(q[rows, queries], k[rows, keys], v[rows, keys], segment, scaling)
        return out

    def after_forward(self, key: Tensor) -> None:
        """At the end of every call, sparse or not. key: as the attention function got it."""
        if self._cache is not None:
            self._kept.after(self._cache, key)
            self._cache = None

    def why_not(self, query: Tensor, mask: Any, dropout: float, options: dict[str, Any]) -> str:
        """Why this call is dense, "" if it is sparse. options: the other arguments of the attention function."""
        if self.attention is None:
            return self.why_dense
        if query.shape[2] < self.min_queries:
            return "decode, or a chunk shorter than a block"
        if not isinstance(mask, LazyMask):
            return "a mask from the caller"
        if mask.segments is None:
            return "a mask that is not causal, or not known while compiling"
        if mask.num_keys < self.min_keys:
            return f"fewer than {self.min_keys} tokens"
        window = options.get("sliding_window")
        used = ["dropout"] if dropout else []
        used += [f"a window of {window} tokens"] if window is not None and window < mask.shape[3] else []
        used += [f"{name} in the softmax" for name in OTHER_SOFTMAX if options.get(name) is not None]
        return ", ".join(used)

    def count(self, reason: str) -> None:
        """Notes one dense call, or with "" a sparse one that did not go through ops.py."""
        self._eager_calls[f"dense: {reason}" if reason else SPARSE] += 1

    def _run(self, q: Tensor, k: Tensor, v: Tensor, segment: Segment, scaling: float | None) -> Tensor:
        """One call of the kernels: q [batch, queries, num_q_heads, head_dim], k, v [batch, keys, num_kv_heads, ...]."""
        attention = self.attention
        assert attention is not None  # why_not said so
        if torch.compiler.is_compiling():
            return ops.attention(q, k, v, kernels=self.kernels, softmax_scale=scaling)
        pooled = None
        if self._cache is not None:

            def make(max_tokens: int) -> Any:
                return attention.pooled_keys(batch=len(k), max_tokens=max_tokens, like=k)

            pooled = self._kept.pooled(self._cache, segment, k.shape[1] - q.shape[1], make)
        self.count("")
        result = attention(q, k, v, softmax_scale=scaling, pooled_keys=pooled, return_stats=self.keep_stats)
        if isinstance(result, Tensor):
            return result
        if result.stats is not None:
            self.stats.append(result.stats)
        return result.out


def prism_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | LazyMask | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention function of implementation "prism".

    Tensors as PrismLayer.attend takes them. Returns [batch, queries, num_q_heads, head_dim], and the weights where the
    model's eager attention ran. Raises: UnsupportedError where enable() was not called; TensorError, DeviceError.
    """
    layer: PrismLayer | None = getattr(module, ATTRIBUTE, None)
    if layer is None:
        raise UnsupportedError(
            f"{type(module).__name__} runs attention implementation 'prism' without kernels",
            fix="call prism_gen.enable(model, bundle=...) before set_attn_implementation('prism')",
        )
    reason = layer.why_not(query, attention_mask, dropout, options)
    if not reason:
        assert isinstance(attention_mask, LazyMask)
        out, weights = layer.attend(query, key, value, attention_mask, scaling), None
    else:
        if not torch.compiler.is_compiling():
            layer.count(reason)
        out, weights = dense_attention(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    if not torch.compiler.is_compiling():
        layer.after_forward(key)
    return out, weights


def dense_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | LazyMask | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """torch's own attention; the model's eager attention where its softmax is another.

    Arguments and result as those of prism_attention. Raises: UnsupportedError where the model has no eager attention.
    """
    if all(options.get(name) is None for name in EAGER_ONLY):
        made = mask.sdpa() if isinstance(mask, LazyMask) else mask
        return sdpa_attention_forward(module, query, key, value, made, **options)
    eager = getattr(inspect.getmodule(type(module)), "eager_attention_forward", None)
    if eager is None:
        raise UnsupportedError(
            f"{type(module).__name__} changes its softmax, and its file has no eager_attention_forward",
            fix="run this model with its own attention",
        )
    made = mask.eager() if isinstance(mask, LazyMask) else mask
    if made is not None and made.dtype == torch.bool:
        made = torch.zeros(made.shape, dtype=query.dtype, device=made.device).masked_fill_(
            ~made, torch.finfo(query.dtype).min
        )
    result: tuple[Tensor, Tensor | None] = eager(module, query, key, value, made, **options)
    return result
