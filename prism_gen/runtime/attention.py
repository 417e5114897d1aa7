"""PrismAttention: one layer's block-sparse prefill attention. Resolve once, launch many.

Owns the public call: arguments checked, thresholds on the device, stages chained, statistics made. Must not know how a
stage computes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, overload

import torch
from torch import Tensor

from prism_gen.model import ModelSpec
from prism_gen.runtime.backend import BeforeRope, Pooled, Rotated
from prism_gen.runtime.checks import (
    EXACT_DTYPES,
    TORCH_DTYPES,
    TensorRules,
    check_qkv,
    check_rotation,
    check_scale,
    check_selection,
)
from prism_gen.runtime.connect import check_layer, choose_block_size, connect, find_model, open_bundle
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.load import Bundle
from prism_gen.runtime.packages import FromPackage
from prism_gen.runtime.pooled_keys import PooledKeys
from prism_gen.runtime.results import Output, Stats
from prism_gen.runtime.selection import Selection
from prism_gen.runtime.thresholds import ThresholdLike, Thresholds, choose_thresholds, make_thresholds
from prism_gen.sub_blocks import SubBlocks


class PrismAttention(FromPackage):
    """Block-sparse prefill attention of one layer of a model, from a bundle of kernels or in plain torch.

    Everything that can fail for reasons other than the tensors fails here. Calls launch on torch's current stream,
    never synchronise, and may be captured into a CUDA graph.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path | None,
        model: ModelSpec | str | Path | None = None,
        layer: int = 0,
        *,
        block_size: tuple[int, int] | None = None,
        backend: str = "cuda",
        device: torch.device | str | int | None = None,
        high_threshold: ThresholdLike | None = None,
        low_threshold: ThresholdLike | None = None,
        threshold: ThresholdLike | None = None,
    ) -> None:
        """Resolves the kernels.

        bundle: a path is read and every library hashed again by each call, so give many layers one load_bundle(path);
        None only for backend "reference" with a model. model: a name in the bundle (None: its only model), a
        ModelSpec, or the path of a config.json. block_size: (q, k) tokens, default the model's first. device: for
        "cuda", default the current one. thresholds (high, low of the paper's estimator, else the third): a number or
        one per list, in (0, 1]; default the model's.
        Raises: BundleError, ConfigError, UnsupportedError, ResolveError, DeviceError, TensorError.
        """
        subject = find_model(opened := open_bundle(bundle), model)
        self.model, self.layer = subject.model, layer
        check_layer(self.model, layer)
        self.block_size = choose_block_size(self.model, block_size)
        connection = connect(backend, bundle=opened, subject=subject, block_size=self.block_size, device=device)
        self.backend, self.scoring, self.device, self.resolutions = connection
        self._rules = TensorRules(
            num_q_heads=self.model.num_q_heads,
            num_kv_heads=self.model.num_kv_heads,
            head_dim=self.model.head_dim,
            heads_per_list=self.model.heads_per_list,
            dtypes=(TORCH_DTYPES[self.model.dtype],) if self.device else (*TORCH_DTYPES.values(), *EXACT_DTYPES),
            device=self.device,
        )
        self.softmax_scale = self.model.softmax_scale or self.model.head_dim**-0.5
        self.thresholds = self.make_thresholds(high_threshold, low_threshold, threshold=threshold)

    def make_thresholds(
        self,
        high: ThresholdLike | None = None,
        low: ThresholdLike | None = None,
        *,
        threshold: ThresholdLike | None = None,
    ) -> Thresholds:
        """Checked thresholds on the device, for calls that use others than the defaults.

        high, low (the paper's estimator), threshold (subblock): one number, or one per list of blocks (of the model or
        a shard: q heads, or KV heads with share "group"), in (0, 1], or blocks with top_k; None takes the model's.
        Synchronises, so make them before capturing a graph. Raises: TensorError for NaN, out of range, a wrong length,
        or another estimator's.
        """
        named = choose_thresholds(self.model, self.layer, self.block_size, high=high, low=low, threshold=threshold)
        return make_thresholds(named, self.model.num_lists, self.device, self.model.selection.cut)

    @overload
    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        softmax_scale: float | None = None,
        thresholds: Thresholds | None = None,
        pooled_keys: PooledKeys | None = None,
        return_lse: Literal[False] = False,
        return_stats: Literal[False] = False,
    ) -> Tensor: ...

    @overload
    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        softmax_scale: float | None = None,
        thresholds: Thresholds | None = None,
        pooled_keys: PooledKeys | None = None,
        return_lse: bool = False,
        return_stats: bool = False,
    ) -> Tensor | Output: ...

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        softmax_scale: float | None = None,
        thresholds: Thresholds | None = None,
        pooled_keys: PooledKeys | None = None,
        return_lse: bool = False,
        return_stats: bool = False,
    ) -> Tensor | Output:
        """Selects blocks and attends to them: out like q, or Output where lse or statistics are asked for.

        q: [batch, seqlen_q, num_q_heads, head_dim]; k, v: [batch, seqlen_k, num_kv_heads, head_dim]; post-RoPE, the
        model's dtype (the reference takes any float dtype), seqlen_q <= seqlen_k, last dim contiguous; the heads may be
        one tensor-parallel shard. softmax_scale: default the model's. pooled_keys: of this layer and these sequences;
        only the keys that it has not seen are pooled, with the same result, and it then holds them too.
        Raises: TensorError, DeviceError.
        """
        grid = check_qkv(q, k, v, self._rules, self.block_size)
        scale = self._scale(softmax_scale)
        pooled = self._pool(q, k, grid, pooled_keys)
        selection = self.select(pooled, thresholds=thresholds, softmax_scale=scale)
        out, lse = self.backend.attend(q, k, v, selection, softmax_scale=scale, return_lse=return_lse)
        if not (return_lse or return_stats):
            return out
        return Output(out, lse, Stats.of(selection) if return_stats else None)

    def pooled_keys(self, *, batch: int, max_tokens: int, like: Tensor) -> PooledKeys:
        """An empty cache of pooled keys for this layer, to pass with every chunk of the same sequences.

        max_tokens: the longest sequence. like: any k of these sequences, for its heads, device and dtype.
        """
        return PooledKeys(
            batch=batch,
            num_kv_heads=like.shape[2],
            head_dim=self.model.head_dim,
            max_tokens=max_tokens,
            block_size=self.block_size[1],
            sub_block_size=self.scoring.k if isinstance(self.scoring, SubBlocks) else None,
            device=like.device,
            k_multiple=self.backend.means.k_multiple,
            dtype=self.backend.means.dtype_of(like),
        )

    def pool(self, q: Tensor, k: Tensor, *, pooled_keys: PooledKeys | None = None) -> Pooled:
        """Stage 1 alone: block means and energies. Raises: TensorError, DeviceError."""
        return self._pool(q, k, check_qkv(q, k, None, self._rules, self.block_size), pooled_keys)

    def rotate_and_pool(
        self,
        q: Tensor,
        k: Tensor,
        cos: Tensor,
        sin: Tensor,
        *,
        k_out: Tensor | None = None,
        pooled_keys: PooledKeys | None = None,
    ) -> Rotated:
        """RoPE and stage 1 in one pass over new tokens: rotated q and k, and what select takes.

        q: [batch, num_tokens, num_q_heads, head_dim] and k, of the same tokens, before RoPE; cos, sin: [batch or 1,
        num_tokens, rotary_dim / 2], one value a pair, in q's dtype. k_out: where rotated k goes, such as its places in
        the KV cache; default a new tensor. pooled_keys: these tokens follow those that it holds; default they are the
        first. On a GPU the bundle must have been built with "fused_rope": true.
        Raises: TensorError, DeviceError, UnsupportedError.
        """
        check_qkv(q, k, None, self._rules, self.block_size)
        check_rotation(q, k, (cos, sin), k_out, self.model.rope.rotary_dim)
        start = 0 if pooled_keys is None else pooled_keys.num_tokens
        grid = BlockGrid(q.shape[1], start + k.shape[1], *self.block_size)
        if pooled_keys is not None:
            pooled_keys.check(k, grid)
        k_rotated = torch.empty(k.shape, dtype=k.dtype, device=k.device) if k_out is None else k_out
        q_rotated, pooled = self.backend.rotate_and_pool(BeforeRope(q, k, cos, sin), k_rotated, grid, pooled_keys)
        return Rotated(q_rotated, k_rotated, pooled)

    def select(
        self,
        pooled: Pooled,
        *,
        thresholds: Thresholds | None = None,
        softmax_scale: float | None = None,
        with_probs: bool = False,
    ) -> Selection:
        """Stage 2 alone. with_probs: also the masses of the cut. Raises: TensorError."""
        chosen = self.thresholds if thresholds is None else thresholds
        rows = chosen.rows(pooled.q_mean.shape[1] // self.model.heads_per_list, pooled.q_mean.device)
        scale = self._scale(softmax_scale)
        return self.backend.select(pooled, rows, softmax_scale=scale, with_probs=with_probs)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        selection: Selection,
        *,
        softmax_scale: float | None = None,
        return_lse: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Stage 3 alone, on a selection of select, Selection.from_mask, or Selection.all_visible (dense attention).

        Raises: TensorError, DeviceError.
        """
        grid = check_qkv(q, k, v, self._rules, self.block_size)
        check_selection(selection, q, grid, self.model.heads_per_list)
        scale = self._scale(softmax_scale)
        return self.backend.attend(q, k, v, selection, softmax_scale=scale, return_lse=return_lse)

    def grid(self, q: Tensor, k: Tensor) -> BlockGrid:
        """The block grid of a call with these tensors. Raises: TensorError, DeviceError."""
        return check_qkv(q, k, None, self._rules, self.block_size)

    def _pool(self, q: Tensor, k: Tensor, grid: BlockGrid, pooled_keys: PooledKeys | None) -> Pooled:
        if pooled_keys is not None:
            pooled_keys.check(k, grid)
        return self.backend.pool(q, k, grid, pooled_keys)

    def _scale(self, softmax_scale: float | None) -> float:
        return self.softmax_scale if softmax_scale is None else check_scale(softmax_scale)
