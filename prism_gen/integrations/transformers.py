"""prism_gen.enable: a transformers model whose prefill runs sparse, through transformers' own interfaces.

Owns the registration of attention implementation "prism" and the resolution of every layer. Must not choose per call
(layer.py does). transformers 5; no function of it is replaced.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from prism_gen.arch import ARCHS
from prism_gen.errors import UnsupportedError
from prism_gen.integrations.describe import (
    NOT_CAUSAL,
    LayerStatement,
    attention_modules,
    describe,
    kernel_dtype,
    sentences,
    where,
)
from prism_gen.integrations.layer import SPARSE, PrismLayer, prism_attention
from prism_gen.integrations.lazy_mask import prism_mask
from prism_gen.integrations.shard import shard_of
from prism_gen.model import ModelSpec, SelectionSpec
from prism_gen.runtime import ops
from prism_gen.runtime.attention import PrismAttention
from prism_gen.runtime.connect import choose_block_size, open_bundle
from prism_gen.runtime.load import Bundle
from prism_gen.runtime.thresholds import ThresholdLike
from prism_gen.specialize import attend_problem, block_pair_scoring, specialize

IMPLEMENTATION = "prism"
# Tokens from which sparse won on an H200 (32 q heads of 128, transformers 5.17; a layer, dense with FlashAttention-4):
# .14 ms against .07 at 2048 tokens, where the host's launches are what is seen, .11 against .24 at 4096.
MIN_KEYS = 4096
USUAL_DENSITY = 0.25  # what the paper's thresholds select of a real text (docs/method.md)

AttentionInterface.register(IMPLEMENTATION, prism_attention)
AttentionMaskInterface.register(IMPLEMENTATION, prism_mask)


class Enabled:
    """What enable() did: a statement per layer, and counters of what ran. print() it to read it."""

    def __init__(
        self, name: str, backend: str, statements: list[LayerStatement], layers: list[PrismLayer], *, min_keys: int
    ) -> None:
        self.name = name
        self.backend = backend
        self.min_keys = min_keys
        self.statements = statements
        self.layers = layers

    def calls(self) -> list[Counter[str]]:
        """Of each layer, calls so far by what they were: "sparse", or "dense: " and the reason."""
        return [layer.calls() for layer in self.layers]

    def sparse_runs(self) -> list[int]:
        """Of each layer, how often the sparse kernels really ran."""
        return [calls[SPARSE] for calls in self.calls()]

    def densities(self) -> list[float | None]:
        """Of each layer, selected over visible blocks in its last sparse pass; None without one. Waits for the device.

        Needs enable(..., keep_stats=True).
        """
        return [_density(layer) for layer in self.layers]

    def __str__(self) -> str:
        sparse = sum(not statement.why_dense for statement in self.statements)
        head = f"{self.name}: {sparse} of {len(self.statements)} layers run sparse prefill on {self.backend}"
        dense = f"decode and prompts under {self.min_keys} tokens are" if self.min_keys else "decode is"
        return f"{head}; {dense} dense everywhere\n{sentences(self.statements)}"


def enable(
    model: Any,
    bundle: Bundle | str | Path | None = None,
    *,
    backend: str = "cuda",
    selection: SelectionSpec | None = None,
    block_size: tuple[int, int] | None = None,
    high_threshold: ThresholdLike | None = None,
    low_threshold: ThresholdLike | None = None,
    threshold: ThresholdLike | None = None,
    min_queries: int | None = None,
    min_keys: int | None = None,
    keep_stats: bool = False,
) -> Enabled:
    """Resolves kernels for every attention layer of a transformers model; then model.set_attn_implementation("prism").

    bundle: read once; None only for backend "reference". selection: default the config's `prism` object, else that of
    the bundle's model of this shape. block_size, thresholds: as for PrismAttention. min_queries: passes with fewer
    tokens are dense; default one block of queries. min_keys: so are passes over sequences with fewer tokens; default,
    with "cuda", from where a tuned bundle says that sparse wins on this GPU, else MIN_KEYS. keep_stats: for
    Enabled.densities; costs two small launches a layer.
    A layer that Prism does not serve (a sliding window, a head dim without kernels, another softmax) stays dense, and
    the result says why; calling again starts anew.
    Raises: BundleError, ResolveError, DeviceError where kernels that exist cannot be had; UnsupportedError for a model
    without attention modules or of a dtype without kernels.
    """
    opened = open_bundle(bundle)
    modules = attention_modules(model)
    if not any(index >= 0 for index in modules):
        raise UnsupportedError(
            f"{type(model).__name__} has no causal attention layer with a layer_idx",
            fix="give a decoder of transformers 5, such as AutoModelForCausalLM loads",
        )
    spec, refusal = _describe_or_refuse(model, backend=backend, bundle=opened, selection=selection)
    thresholds = {"high_threshold": high_threshold, "low_threshold": low_threshold, "threshold": threshold}
    options: dict[str, Any] = {"block_size": block_size, "backend": backend, **thresholds}
    least_keys = min_keys
    if least_keys is None:
        least_keys = _crossover(opened, spec, block_size) if backend == "cuda" and spec else 0
    limits = _Limits(min_queries, least_keys, keep_stats)
    name = ops.free_name(spec.name) if spec else type(model).__name__
    shard, layers, statements = shard_of(model), [], []
    for index in sorted(index for index in modules if index >= 0):
        why_dense = _why_dense(spec, index, backend, block_size) if spec else refusal
        attention = None
        if spec and not why_dense:
            attention = PrismAttention(opened, spec, index, device=_device(modules[index][0]), **options)
            attention.thresholds = shard.own(attention.thresholds)
        layer = limits.layer(index, attention, f"{name}.layer{index}", why_dense)
        layers.append(layer)
        statements.append(LayerStatement(index, why_dense, _kernel_names(attention)))
        for module in modules[index]:
            layer.attach(module)
    for module in modules.get(NOT_CAUSAL, ()):
        PrismLayer(NOT_CAUSAL, None, why_dense="not causal").attach(module)
    return Enabled(name, backend, statements, layers, min_keys=least_keys)


def _crossover(bundle: Bundle | None, spec: ModelSpec, block_size: tuple[int, int] | None) -> int:
    """Tokens from which a layer is faster sparse than dense, as measured where it was."""
    label = attend_problem(spec, choose_block_size(spec, block_size)).label()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    density = spec.selection.density or USUAL_DENSITY
    measured = bundle.sparse_from(gpu, label, density=density) if bundle else None
    return MIN_KEYS if measured is None else measured


class _Limits(NamedTuple):
    """Which passes of a layer are sparse; see enable."""

    min_queries: int | None
    min_keys: int
    keep_stats: bool

    def layer(self, index: int, attention: PrismAttention | None, name: str, why_dense: str) -> PrismLayer:
        """A layer, its kernels registered under `name`."""
        if attention is None:
            return PrismLayer(index, None, why_dense=why_dense)
        return PrismLayer(
            index,
            attention,
            kernels=ops.register(attention, name),
            min_queries=attention.block_size[0] if self.min_queries is None else self.min_queries,
            min_keys=self.min_keys,
            keep_stats=self.keep_stats,
        )


def _describe_or_refuse(
    model: Any, *, backend: str, bundle: Bundle | None, selection: SelectionSpec | None
) -> tuple[ModelSpec | None, str]:
    """The model, or None and why none of its layers can run sparse. Raises: UnsupportedError, ConfigError."""
    dtype = kernel_dtype(model, exact=backend == "reference")
    try:
        return describe(model, dtype=dtype, bundle=bundle, selection=selection), ""
    except UnsupportedError as error:
        return None, error.asked.removeprefix(where(model))


def _device(module: nn.Module) -> torch.device | None:
    """Where a layer's weights are, so that a model may lie on several GPUs; None where no GPU holds them."""
    device = next((parameter.device for parameter in module.parameters()), None)
    return device if device is not None and device.type == "cuda" else None


def _density(layer: PrismLayer) -> float | None:
    """Over all lists of all calls of the last pass."""
    selected = sum(int(stats.counts.sum()) for stats in layer.stats)
    visible = sum(stats.visible_blocks * stats.density.numel() for stats in layer.stats)
    return selected / visible if visible else None


def _kernel_names(attention: PrismAttention | None) -> tuple[str, ...]:
    if attention is None:
        return ()
    return tuple(resolution.entry.name for resolution in attention.resolutions) or ("plain torch",)


def _why_dense(spec: ModelSpec, index: int, backend: str, block_size: tuple[int, int] | None) -> str:
    """Why a layer cannot run sparse whatever the bundle, "" if it can."""
    if index >= spec.num_layers:
        return "not a layer of the config"
    if spec.layer_kinds[index] != "full":
        return f"a {spec.layer_kinds[index]}-window layer"
    size = choose_block_size(spec, block_size)
    selection = msgspec.structs.replace(spec.selection, block_sizes=(size,))
    try:
        block_pair_scoring(spec, size)
        if backend == "cuda":
            _any_arch(msgspec.structs.replace(spec, selection=selection))
    except UnsupportedError as error:
        return error.asked
    return ""


def _any_arch(spec: ModelSpec) -> None:
    """Raises: UnsupportedError of the last arch if none has schedules for the model."""
    refusal = None
    for arch in ARCHS:
        try:
            specialize(spec, [arch])
        except UnsupportedError as error:
            refusal = error
        else:
            return
    if refusal is not None:
        raise refusal
