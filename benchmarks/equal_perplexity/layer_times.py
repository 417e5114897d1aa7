"""One attention layer on seeded inputs: dense by every kernel at hand, and each way at its density.

Owns the inputs, how a density is set, and how a layer is timed. Must not know files or perplexity.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.equal_perplexity.ways import Way
from prism_gen.bench.directions import sharpen
from prism_gen.bench.timing import MIN_RUNS, captured, measure_each
from prism_gen.model import ModelSpec
from prism_gen.runtime import PrismAttention
from prism_gen.runtime.load import Bundle
from prism_gen.runtime.results import Stats, relative_error
from prism_gen.runtime.selection import Selection
from prism_gen.runtime.thresholds import Thresholds
from prism_gen.sub_blocks import SubBlocks

DIRECTION_TOKENS = (64, 64)  # over which the inputs' directions stay, as in bench/fine_workload.py
SEARCH_STEPS = 16  # halvings of the range of thresholds: the density is then within a thousandth of what is asked
CALLS, LONG_TOKENS = 4, 65536  # layers in one graph, so that no launch gap is in a layer's time; from here on one
MAX_ERROR = 0.01  # of attend on every block against a dense kernel, Frobenius: the rounding of two bf16 kernels
DENSE = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash2": SDPBackend.FLASH_ATTENTION}
CPU_DENSE = {"math": SDPBackend.MATH}
OWN_DENSE = "attend"  # our kernel on every block

Call = Callable[[], object]


class Layer(NamedTuple):
    """q [1, tokens, num_q_heads, head_dim], k and v with num_kv_heads; bf16 on a GPU."""

    q: Tensor
    k: Tensor
    v: Tensor


def make_layer(model: ModelSpec, tokens: int, device: torch.device) -> Layer:
    """Normal q, k, v with a few common directions, so that few keys matter."""
    draw = torch.Generator(device=device).manual_seed(tokens)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    q, k, v = (
        torch.randn(1, tokens, heads, model.head_dim, generator=draw, device=device).to(dtype)
        for heads in (model.num_q_heads, model.num_kv_heads, model.num_kv_heads)
    )
    sharpen(q, k, DIRECTION_TOKENS)
    return Layer(q, k, v)


def attention_of(bundle: Bundle | None, model: ModelSpec, way: Way, device: torch.device) -> PrismAttention:
    """The way's attention, of kernels on a GPU and of the reference on a CPU."""
    on_gpu = device.type == "cuda"
    spec = msgspec.structs.replace(model, selection=way.selection)
    backend = "cuda" if on_gpu else "reference"
    return PrismAttention(bundle, spec, backend=backend, device=device if on_gpu else None)


def thresholds_for(attention: PrismAttention, layer: Layer, density: float) -> tuple[Thresholds, float]:
    """The cumulative probability, one for all lists and bands, that selects `density` here; and what it selects."""
    pooled = attention.pool(layer.q, layer.k)
    named = ("threshold",) if isinstance(attention.scoring, SubBlocks) else ("high", "low")
    low, high = 0.0, 1.0
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        thresholds = attention.make_thresholds(**dict.fromkeys(named, middle))
        found = float(Stats.of(attention.select(pooled, thresholds=thresholds)).density.mean())
        low, high = (middle, high) if found < density else (low, middle)
    return thresholds, found


def dense_calls(attention: PrismAttention, layer: Layer) -> dict[str, Call]:
    """Dense attention by torch's kernels and by ours, which must agree. Raises: SystemExit where they do not."""
    q, k, v = (x.transpose(1, 2) for x in layer)

    def torch_dense(backend: SDPBackend) -> Tensor:
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2)

    backends = DENSE if layer.q.is_cuda else CPU_DENSE
    calls: dict[str, Call] = {name: partial(torch_dense, backend) for name, backend in backends.items()}
    everything = Selection.all_visible(
        attention.grid(layer.q, layer.k), 1, layer.q.shape[2] // attention.model.heads_per_list, layer.q.device
    )
    calls[OWN_DENSE] = lambda: attention.attend(*layer, everything)[0]
    exact = torch_dense(next(iter(backends.values())))
    error = float(relative_error(attention.attend(*layer, everything)[0], exact).max())
    if not error < MAX_ERROR:
        raise SystemExit(f"attend on every block differs from dense attention by {error:.4f}")
    return calls


def stage_calls(attention: PrismAttention, layer: Layer, thresholds: Thresholds) -> dict[str, Call]:
    """The whole layer, and each of its stages on what the one before left."""
    pooled = attention.pool(layer.q, layer.k)
    selection = attention.select(pooled, thresholds=thresholds)
    return {
        "layer": lambda: attention(*layer, thresholds=thresholds),
        "pool": lambda: attention.pool(layer.q, layer.k),
        "select": lambda: attention.select(pooled, thresholds=thresholds),
        "attend": lambda: attention.attend(*layer, selection)[0],
    }


def timed(calls: Mapping[str, Call], layer: Layer, *, runs: int = MIN_RUNS) -> dict[str, dict[str, Any]]:
    """Milliseconds of each call, runs in turn: CALLS of it (1 from LONG_TOKENS on) in a CUDA graph, or one on a CPU."""
    device, on_gpu = layer.q.device, layer.q.is_cuda
    times = CALLS if on_gpu and layer.q.shape[1] < LONG_TOKENS else 1
    repeated = {name: captured(partial(_repeat, call, times)) if on_gpu else call for name, call in calls.items()}
    found = {}
    for name, ms in measure_each(repeated, device, runs=runs).items():
        each = [round(x / times, 5) for x in ms]
        found[name] = {"ms": statistics.median(each), "runs_ms": each}
    return found


def _repeat(call: Call, times: int) -> None:
    for _ in range(times):
        call()
