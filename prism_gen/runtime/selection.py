"""Selection: the chosen key blocks of every query block, as compact lists; and the ways to and from a dense mask.

Owns the list format of templates/README.md. Must not know how blocks are scored.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prism_gen.errors import TensorError
from prism_gen.runtime.grid import BlockGrid

PADDING = (
    -1
)  # written after the last chosen block of a row: never a valid block, so reading past the count shows at once


@dataclass(frozen=True)
class Selection:
    """The chosen key blocks of every query block.

    block_indices: [batch, num_lists, num_q_blocks, max_blocks] int32, rising; a row ends after its block_counts.
    block_counts: [batch, num_lists, num_q_blocks] int32. num_lists: num_q_heads, or num_kv_heads where a group shares.
    probs: None, or [batch, num_lists, bands, num_q_blocks, num_k_blocks] int32, the masses that were cut: of the
    paper's (high, low) bands, or of the one distribution of the subblock estimator. They are proportional to a row's
    probabilities (method.md step 5), and at most 2**30.
    wanted_counts: None, or int32 like block_counts: the blocks that a row's rule chose. More than max_blocks says that
    the list overflowed and holds the strongest that fit.
    """

    block_indices: Tensor
    block_counts: Tensor
    grid: BlockGrid
    probs: Tensor | None = None
    wanted_counts: Tensor | None = None

    @classmethod
    def from_mask(
        cls,
        block_mask: Tensor,
        grid: BlockGrid,
        probs: Tensor | None = None,
        *,
        wanted_counts: Tensor | None = None,
        max_blocks: int | None = None,
    ) -> Selection:
        """Compacts a dense mask.

        block_mask: bool [batch, num_lists, num_q_blocks, num_k_blocks]; blocks that are not visible are dropped.
        max_blocks: capacity of a list, at least the longest row's blocks; None: num_k_blocks.
        Raises: TensorError if the mask does not have the shape of the grid.
        """
        expected = (grid.num_q_blocks, grid.num_k_blocks)
        if block_mask.dim() != 4 or block_mask.dtype != torch.bool or tuple(block_mask.shape[2:]) != expected:
            raise TensorError(
                f"block_mask is {block_mask.dtype} {list(block_mask.shape)}",
                exists=f"this grid takes torch.bool [batch, num_heads, {expected[0]}, {expected[1]}]",
                fix="make the mask for the same lengths and block sizes",
            )
        chosen = block_mask & visible_blocks(grid, block_mask.device)
        columns = torch.arange(grid.num_k_blocks, device=block_mask.device, dtype=torch.int32)
        after_last = torch.iinfo(torch.int32).max
        indices = torch.where(chosen, columns, after_last).sort(dim=-1).values
        indices = torch.where(indices == after_last, PADDING, indices)
        return cls(indices[..., :max_blocks], chosen.sum(-1, dtype=torch.int32), grid, probs, wanted_counts)

    @classmethod
    def all_visible(cls, grid: BlockGrid, batch: int, num_heads: int, device: torch.device) -> Selection:
        """Every visible block: attend on it is dense causal attention."""
        columns = torch.arange(grid.num_k_blocks, device=device, dtype=torch.int32)
        counts = torch.tensor([grid.num_visible(i) for i in range(grid.num_q_blocks)], device=device, dtype=torch.int32)
        indices = columns.expand(batch, num_heads, grid.num_q_blocks, -1).contiguous()
        return cls(indices, counts.expand(batch, num_heads, -1).contiguous(), grid)

    def block_mask(self) -> Tensor:
        """The dense mask, bool [batch, num_heads, num_q_blocks, num_k_blocks]: for tests, figures and statistics."""
        width = self.block_indices.shape[-1]
        slots = torch.arange(width, device=self.block_indices.device)
        in_use = slots < self.block_counts[..., None]
        spare = self.grid.num_k_blocks  # one extra column takes the unused slots
        target = torch.where(in_use, self.block_indices, spare).long()
        mask = torch.zeros(*self.block_counts.shape, spare + 1, dtype=torch.bool, device=target.device)
        return mask.scatter_(-1, target, in_use)[..., :spare]


def visible_blocks(grid: BlockGrid, device: torch.device) -> Tensor:
    """Bool [num_q_blocks, num_k_blocks]: key blocks that at least one row of the query block sees."""
    counts = torch.tensor([grid.num_visible(i) for i in range(grid.num_q_blocks)], device=device)
    return torch.arange(grid.num_k_blocks, device=device) < counts[:, None]


def diagonal_blocks(grid: BlockGrid, device: torch.device) -> Tensor:
    """Bool [num_q_blocks, num_k_blocks]: visible key blocks that hold the causal boundary of at least one row."""
    first = torch.tensor([grid.first_diagonal(i) for i in range(grid.num_q_blocks)], device=device)
    return (torch.arange(grid.num_k_blocks, device=device) >= first[:, None]) & visible_blocks(grid, device)
