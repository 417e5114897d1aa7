"""prism_gen.capture: q, k and v of chosen layers of any transformers model, as files that run, verify and bench read.

Owns the recording. The model computes dense attention meanwhile, so a layer's tensors are those of the exact model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from prism_gen.errors import ConfigError, TensorError
from prism_gen.integrations.describe import attention_modules
from prism_gen.integrations.layer import dense_attention
from prism_gen.integrations.lazy_mask import LazyMask, prism_mask
from prism_gen.runtime.qkv_file import QKV, write_qkv
from prism_gen.runtime.resolve import ranges

IMPLEMENTATION = "prism_capture"
ATTRIBUTE = "prism_recorder"  # where an attention module keeps its Recorder meanwhile


class Recorder:
    """The q, k, v of one layer: of the pass with the most queries, the latest of equals."""

    def __init__(self, index: int, dtype: torch.dtype | None) -> None:
        """dtype: what to convert to; None keeps the model's."""
        self.index = index
        self.dtype = dtype
        self.qkv: QKV | None = None

    def record(self, query: Tensor, key: Tensor, value: Tensor, mask: Any) -> None:
        """Tensors as an attention function gets them. Raises: TensorError for a batch with padding."""
        num_queries = query.shape[2]
        if num_queries == 1 or (self.qkv is not None and self.qkv.q.shape[1] > num_queries):
            return
        segments = mask.segments if isinstance(mask, LazyMask) else None
        if segments is None or len(segments) != 1 or segments[0].queries != slice(0, num_queries):
            raise TensorError(
                f"layer {self.index} was given a batch with padding, or a mask that is not causal, such as a window's",
                exists="a file holds sequences of one length, all of whose tokens are real and see all before them",
                fix="run one sequence at a time, without a mask, and capture layers that attend to everything",
            )
        parts = (x.transpose(1, 2).to("cpu", self.dtype, copy=True) for x in (query, key, value))
        q, k, v = parts
        keys = segments[0].keys
        self.qkv = QKV(q, k[:, keys], v[:, keys], self.index)


@contextmanager
def capture(
    model: Any, layers: Iterable[int], folder: str | Path, *, dtype: torch.dtype | None = None
) -> Iterator[dict[int, Path]]:
    """While it is open, passes of `model` are recorded; at its end each layer's q, k, v are a file in `folder`.

    layers: indices. dtype: of the files, default the model's; kernels read bf16 and fp16. Yields layer -> path, filled
    at the end: layer14.safetensors. Of several passes the one with the most queries is kept; decode steps never are.
    Raises: ConfigError for a layer that the model lacks, or where nothing ran; TensorError for padded batches.
    """
    modules = attention_modules(model)
    chosen = sorted(set(layers))
    missing = [index for index in chosen if index not in modules or index < 0]
    if missing or not chosen:
        raise ConfigError(
            f"no attention layer {ranges(missing)}" if missing else "no layer to capture",
            exists=f"layers {ranges(sorted(index for index in modules if index >= 0))}",
            fix="give indices of these",
        )
    AttentionInterface.register(IMPLEMENTATION, _recording_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, prism_mask)
    recorders = {index: Recorder(index, dtype) for index in chosen}
    before = model.config._attn_implementation
    files: dict[int, Path] = {}
    try:
        for index, recorder in recorders.items():
            for module in modules[index]:
                setattr(module, ATTRIBUTE, recorder)
        model.set_attn_implementation(IMPLEMENTATION)
        yield files
    finally:
        model.set_attn_implementation(before)
        for index in chosen:
            for module in modules[index]:
                delattr(module, ATTRIBUTE)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for index, recorder in recorders.items():
        if recorder.qkv is None:
            raise ConfigError(f"layer {index} saw no prefill while it was captured", fix="call the model inside `with`")
        files[index] = Path(folder) / f"layer{index}.safetensors"
        write_qkv(files[index], recorder.qkv, model=getattr(model, "name_or_path", ""))


def _recording_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | LazyMask | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """An attention function that records its tensors where the module has a Recorder; dense."""
    recorder: Recorder | None = getattr(module, ATTRIBUTE, None)
    if recorder is not None:
        recorder.record(query, key, value, attention_mask)
    return dense_attention(module, query, key, value, attention_mask, **options)
