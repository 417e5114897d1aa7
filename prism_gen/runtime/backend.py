"""The three stages behind one interface, and its plain-torch form.

Owns the Backend protocol that PrismAttention drives. Arguments arrive checked (checks.py). Must not resolve or load.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from prism_gen.rope import Bands
from prism_gen.runtime import reference, reference_subblock
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.pooled_keys import PooledKeys
from prism_gen.runtime.reference_pool import compute_dtype, pool, pool_chunk
from prism_gen.runtime.reference_rotate import rotate
from prism_gen.runtime.rules import PAPER_RULES, SelectRules
from prism_gen.runtime.selection import Selection
from prism_gen.sub_blocks import SubBlocks


class Pooled(NamedTuple):
    """What select needs of q and k.

    *_mean: [batch, num_heads, num_blocks, head_dim]. *_energy: [batch, num_heads, num_blocks, 3]. fp32 (fp64 for fp64
    inputs). With the subblock estimator means are of sub-blocks, and energies [batch, num_heads, num_sub_blocks, 0].
    grid: of the blocks in either case.
    """

    q_mean: Tensor
    k_mean: Tensor
    q_energy: Tensor
    k_energy: Tensor
    grid: BlockGrid


class MeansFormat(NamedTuple):
    """How a backend holds means. dtype: None is reference_pool.compute_dtype of what is pooled.

    k_multiple: there is room for a multiple of so many means of k.
    """

    dtype: torch.dtype | None = None
    k_multiple: int = 1

    def dtype_of(self, x: Tensor) -> torch.dtype:
        """Of the means of x."""
        return compute_dtype(x) if self.dtype is None else self.dtype

    def num_means(self, num_tokens: int, mean_tokens: int) -> int:
        """Room for the means of num_tokens tokens of k, each of mean_tokens."""
        return -(-num_tokens // (mean_tokens * self.k_multiple)) * self.k_multiple


OWN_FORMAT = MeansFormat()  # of whole blocks, and of the reference


class BeforeRope(NamedTuple):
    """The new tokens of a call before RoPE, and the tables that rotate them.

    q: [batch, num_tokens, num_q_heads, head_dim]; k: [batch, num_tokens, num_kv_heads, head_dim].
    cos, sin: [batch or 1, num_tokens, rotary_dim / 2], in q's dtype, one shape and layout.
    """

    q: Tensor
    k: Tensor
    cos: Tensor
    sin: Tensor


class Rotated(NamedTuple):
    """The same tokens after RoPE, and what pool makes of them: q and k go to attend, pooled to select."""

    q: Tensor
    k: Tensor
    pooled: Pooled


class Backend(Protocol):
    """Stages as reference.py defines them."""

    @property
    def name(self) -> str:
        """ "cuda" or "reference"."""
        ...

    @property
    def means(self) -> MeansFormat:
        """How its Pooled and a PooledKeys for it hold means."""
        ...

    def pool(self, q: Tensor, k: Tensor, grid: BlockGrid, cache: PooledKeys | None = None) -> Pooled:
        """Means and energies of the blocks of q and k; with a cache, only of those keys that it has not seen."""
        ...

    def rotate_and_pool(
        self, x: BeforeRope, k_out: Tensor, grid: BlockGrid, cache: PooledKeys | None = None
    ) -> tuple[Tensor, Pooled]:
        """q rotated, and pool's result for rotated q and k; rotated k goes to k_out [like k].

        grid: of the q in x and of all keys, of which those in x are the last.
        """
        ...

    def select(self, pooled: Pooled, thresholds: Tensor, *, softmax_scale: float, with_probs: bool) -> Selection:
        """The chosen blocks.

        thresholds: fp32 [num_lists, 2], with the subblock estimator [num_lists, 1], on the device of pooled.
        softmax_scale: of the subblock estimator's logits; the paper's calibrates its own.
        """
        ...

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, selection: Selection, *, softmax_scale: float, return_lse: bool
    ) -> tuple[Tensor, Tensor | None]:
        """out like q, and lse [batch, num_q_heads, seqlen_q] or None."""
        ...


@dataclass(frozen=True)
class ReferenceBackend:
    """reference.py on whatever device the tensors are on. scoring: the paper's bands, or sub-blocks."""

    scoring: Bands | SubBlocks
    interleaved: bool
    rules: SelectRules = PAPER_RULES
    name: str = "reference"
    means: MeansFormat = OWN_FORMAT

    def pool(self, q: Tensor, k: Tensor, grid: BlockGrid, cache: PooledKeys | None = None) -> Pooled:
        """See Backend.pool."""
        return self._pool(q, k if cache is None else k[:, cache.num_tokens :], grid, cache)

    def rotate_and_pool(
        self, x: BeforeRope, k_out: Tensor, grid: BlockGrid, cache: PooledKeys | None = None
    ) -> tuple[Tensor, Pooled]:
        """See Backend.rotate_and_pool."""
        q, k = (rotate(y, x.cos, x.sin, interleaved=self.interleaved) for y in (x.q, x.k))
        k_out.copy_(k)
        return q, self._pool(q, k, grid, cache)

    def _pool(self, q: Tensor, new_k: Tensor, grid: BlockGrid, cache: PooledKeys | None) -> Pooled:
        bands, size_q, size_k = None, grid.block_size_q, grid.block_size_k
        if isinstance(self.scoring, SubBlocks):
            size_q, size_k = self.scoring.q, self.scoring.k
        else:
            bands = self.scoring
        q_mean, q_energy = pool(q, size_q, bands)
        if cache is None:
            k_mean, k_energy = pool(new_k, size_k, bands)
            return Pooled(q_mean, k_mean, q_energy, k_energy, grid)
        start = cache.num_tokens
        if grid.seqlen_k > start:
            chunk = pool_chunk(new_k, size_k, bands, start=start, tail=cache.tail)
            first = start // size_k
            cache.mean[:, :, first : first + chunk.mean.shape[2]] = chunk.mean
            cache.energy[:, :, first : first + chunk.mean.shape[2]] = chunk.energy
            cache.next_tail.copy_(chunk.tail)
            cache.advance(grid.seqlen_k)
        k_mean, k_energy = cache.pooled()
        return Pooled(q_mean, k_mean, q_energy, k_energy, grid)

    def select(self, pooled: Pooled, thresholds: Tensor, *, softmax_scale: float, with_probs: bool) -> Selection:
        """See Backend.select; the probabilities exist anyway and are left out unless asked for."""
        q_mean, k_mean, q_energy, k_energy, grid = pooled
        if isinstance(self.scoring, SubBlocks):
            chosen = reference_subblock.select(
                q_mean,
                k_mean,
                thresholds,
                sub_blocks=self.scoring,
                grid=grid,
                softmax_scale=softmax_scale,
                rules=self.rules,
            )
        else:
            chosen = reference.select(
                q_mean, k_mean, q_energy, k_energy, thresholds, bands=self.scoring, grid=grid, rules=self.rules
            )
        return chosen if with_probs else replace(chosen, probs=None)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, selection: Selection, *, softmax_scale: float, return_lse: bool
    ) -> tuple[Tensor, Tensor | None]:
        """See Backend.attend."""
        out, lse = reference.attend(q, k, v, selection, softmax_scale=softmax_scale)
        return out, lse if return_lse else None
