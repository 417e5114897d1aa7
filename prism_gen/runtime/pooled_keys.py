"""PooledKeys: the block means of the keys of one layer, kept beside its KV cache, so that a chunk pools only its own.

Owns that state and what a caller can get wrong about it. Must not pool (backend.py does).
"""

from __future__ import annotations

import torch
from torch import Tensor

from prism_gen.errors import DeviceError, TensorError
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.reference_pool import granules_per_block


class PooledKeys:
    """Means and energies of the key blocks of a batch of sequences that grow together, for one layer.

    num_tokens: keys pooled so far. mean_tokens: of one mean: a block, or a sub-block. mean: [batch, num_kv_heads,
    max_means, head_dim]; energy: [batch, num_kv_heads, max_means, 3, or 0 of sub-blocks]; of the first num_tokens
    tokens, fp32 (fp64 for the exact reference; means of the subblock estimator's kernels are fp16). A mean whose tokens
    are not complete is of those that are there; the next chunk goes on from its sums: the bits are those that pooling
    all keys at once gives, whatever the chunks were. Memory, as a share of a bf16 KV cache at head_dim 128: 0.8 % in
    blocks of 128; in sub-blocks of 8 12.5 %, or half of that as fp16.
    """

    def __init__(
        self,
        *,
        batch: int,
        num_kv_heads: int,
        head_dim: int,
        max_tokens: int,
        block_size: int,
        sub_block_size: int | None = None,
        k_multiple: int = 1,
        device: torch.device | None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """An empty cache. max_tokens, block_size, sub_block_size (None: means are of whole blocks): tokens.

        k_multiple: max_means is one (backend.MeansFormat). Use PrismAttention.pooled_keys, which knows the model.
        """
        self.block_size = block_size
        self.max_tokens = max_tokens
        self.num_tokens = 0
        self.mean_tokens = sub_block_size or block_size
        self.k_multiple = k_multiple
        rows = (batch, num_kv_heads, -(-max_tokens // (self.mean_tokens * k_multiple)) * k_multiple)
        self.mean = torch.zeros(*rows, head_dim, dtype=dtype, device=device)
        self.energy = torch.zeros(*rows, 0 if sub_block_size else 3, dtype=dtype, device=device)
        # A launch reads the sums of the block it goes on with from one and leaves those of its last block in the other.
        tail = (batch, num_kv_heads, granules_per_block(self.mean_tokens), head_dim)
        self._tails = torch.zeros(2, *tail, dtype=torch.promote_types(dtype, torch.float32), device=device)
        self._newest = 0

    @property
    def tail(self) -> Tensor:
        """Granule sums of the last block, if it is not complete: [batch, num_kv_heads, granules, head_dim]."""
        return self._tails[self._newest]

    @property
    def next_tail(self) -> Tensor:
        """Where the next chunk's tail goes."""
        return self._tails[1 - self._newest]

    def advance(self, num_tokens: int) -> None:
        """After pooling: num_tokens keys are in; if that is more than before, next_tail has the last block's sums."""
        if num_tokens > self.num_tokens:
            self._newest = 1 - self._newest
        self.num_tokens = num_tokens

    def reset(self) -> None:
        """Forgets every token: the memory serves the next batch of sequences. Launches nothing."""
        self.num_tokens = 0

    def grown(self, max_tokens: int) -> PooledKeys:
        """A copy that holds the same tokens, with room for max_tokens, no fewer than before."""
        batch, num_kv_heads, num_means, head_dim = self.mean.shape
        copy = PooledKeys(
            batch=batch,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            max_tokens=max_tokens,
            block_size=self.block_size,
            sub_block_size=None if self.energy.shape[-1] else self.mean_tokens,
            k_multiple=self.k_multiple,
            device=self.mean.device,
            dtype=self.mean.dtype,
        )
        copy.mean[:, :, :num_means] = self.mean
        copy.energy[:, :, :num_means] = self.energy
        copy._tails.copy_(self._tails)
        copy.num_tokens, copy._newest = self.num_tokens, self._newest
        return copy

    def pooled(self) -> tuple[Tensor, Tensor]:
        """mean and energy of the tokens so far: views, whose heads lie max_blocks apart."""
        num_means = -(-self.num_tokens // self.mean_tokens)
        return self.mean[:, :, :num_means], self.energy[:, :, :num_means]

    def check(self, k: Tensor, grid: BlockGrid) -> None:
        """k [batch, seqlen_k, num_kv_heads, head_dim] must go on where the cache ends, and fit.

        Raises: TensorError, DeviceError.
        """
        batch, num_kv_heads, _, head_dim = self.mean.shape
        if (k.shape[0], *k.shape[2:]) != (batch, num_kv_heads, head_dim) or grid.block_size_k != self.block_size:
            raise TensorError(
                f"k has shape {list(k.shape)}, key blocks are of {grid.block_size_k} tokens",
                exists=f"pooled_keys is for batch {batch}, {num_kv_heads} kv heads of {head_dim}, blocks of"
                f" {self.block_size}",
                fix="make it with pooled_keys() of this PrismAttention, for this batch and these heads",
            )
        if k.device != self.mean.device:
            raise DeviceError(f"k is on {k.device}, pooled_keys on {self.mean.device}", fix="keep both on one device")
        if not self.num_tokens <= grid.seqlen_k <= self.max_tokens:
            raise TensorError(
                f"k has {grid.seqlen_k} tokens",
                exists=f"pooled_keys holds {self.num_tokens} of at most {self.max_tokens}",
                fix="pass all keys so far; reset() it for other sequences, or make one with a larger max_tokens",
            )
