"""Step 5 in plain torch: the masses of a row, their cut-off, and the lists that come of it.

Owns the meaning of thresholds, ties, forced blocks and list capacity (method.md step 5, templates/README.md).
Must not know how probabilities are made (reference.py does).
"""

from __future__ import annotations

import torch
from torch import Tensor

from prism_gen.errors import TensorError
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.rules import PAPER_RULES, CutKind, SelectRules
from prism_gen.runtime.selection import Selection, diagonal_blocks, visible_blocks

FIXED_ONE = 1 << 30  # the mass of probability 1 here: p * 2**30 is exact in fp32
SHARE_BITS = 32  # of a threshold in fixed point, a register of kernels: fp32 from 2**-9 on fits exactly


def to_fixed(probs: Tensor) -> Tensor:
    """Probabilities as masses, int32 multiples of 2**-30, rounded to the nearest, halves to even."""
    return (probs * FIXED_ONE).round().to(torch.int32)


def shares(masses: Tensor) -> Tensor:
    """What each mass is of its row's sum, float64: the probabilities that masses of any scale stand for."""
    return masses.double() / masses.sum(-1, keepdim=True).clamp_min(1)


def _limits(totals: Tensor, thresholds: Tensor) -> Tensor:
    """The sums that prefixes of rows must reach: the thresholds' shares of the rows' totals, rounded up, at least 1.

    totals: int64, below 2**31, so that products fit. thresholds: those of 0 or less have a limit of 0; those of 1 or
    more are not for sums to decide.
    """
    parts = (thresholds.double().clamp(0, 1) * 2.0**SHARE_BITS).ceil().long()
    limits = -((totals * -parts) >> SHARE_BITS)  # the shift rounds down
    return torch.where(parts > 0, limits.clamp_min(1), 0)


def cut(masses: Tensor, thresholds: Tensor, grid: BlockGrid, kind: CutKind = "top_p") -> Tensor:
    """The blocks that each row and band keeps: a prefix of its visible blocks in falling order, ties by rising index.

    masses: int32 [batch, num_lists, bands, num_q_blocks, num_k_blocks], 2 bands of the paper's estimator or 1 of
    subblock; each row proportional to its probabilities and of a sum below 2**31. thresholds: fp32 [num_lists, bands].
    kind "top_p": the shortest prefix that holds the threshold's share of the row's sum; 1 or more keeps every visible
    block. "top_k": the first ceil(threshold). "density": the first ceil(threshold * visible blocks), in fp32.
    Returns bool like masses. Source: method.md step 5, templates/README.md.
    """
    visible = visible_blocks(grid, masses.device)
    falling = masses.masked_fill(~visible, -1).sort(dim=-1, descending=True, stable=True)
    if kind == "top_p":
        mass = falling.values.clamp_min(0).long()
        sums = mass.cumsum(-1)
        limits = _limits(sums[..., -1:], thresholds[..., None, None])
        keep_sorted = (sums - mass < limits) | ~(thresholds < 1)[..., None, None]
    else:
        counts = thresholds[..., None] if kind == "top_k" else thresholds[..., None] * visible.sum(-1)
        keep_sorted = torch.arange(grid.num_k_blocks, device=visible.device) < counts.float().ceil()[..., None]
    keep = torch.zeros_like(visible.expand_as(falling.values)).scatter_(
        -1, falling.indices, keep_sorted.expand_as(falling.values)
    )
    return keep & visible


def forced_blocks(grid: BlockGrid, rules: SelectRules, device: torch.device) -> Tensor:
    """Bool [num_q_blocks, num_k_blocks]: what every list holds, whatever its probabilities."""
    forced = torch.zeros(grid.num_q_blocks, grid.num_k_blocks, dtype=torch.bool, device=device)
    if rules.force_sink:
        forced[:, 0] = True
    return forced | diagonal_blocks(grid, device) if rules.force_recent else forced


def least_capacity(grid: BlockGrid, rules: SelectRules) -> int:
    """The smallest max_blocks that holds the forced blocks of every row."""
    return max(1, int(forced_blocks(grid, rules, torch.device("cpu")).sum(-1).max()))


def select_from_fixed(
    masses: Tensor, thresholds: Tensor, grid: BlockGrid, rules: SelectRules = PAPER_RULES
) -> Selection:
    """Union of all bands' cuts with the forced blocks, as compact lists of at most rules.max_blocks.

    masses, thresholds as for cut; the split point on which a kernel's selection is tested. A row whose union is
    longer than its list falls back: each band keeps the strongest of its even share of the room beside forced blocks.
    Raises: TensorError if max_blocks has no room for the forced blocks.
    """
    kept = cut(masses, thresholds, grid, rules.cut)
    forced = forced_blocks(grid, rules, kept.device)
    mask = kept.any(dim=2) | forced
    wanted = mask.sum(-1, dtype=torch.int32)
    if rules.max_blocks is None:
        return Selection.from_mask(mask, grid, masses, wanted_counts=wanted)
    least = least_capacity(grid, rules)
    if rules.max_blocks < least:
        raise TensorError(
            f"max_blocks is {rules.max_blocks}",
            exists=f"a capacity of at least {least}, the forced blocks of one row",
            fix="raise max_blocks, or force fewer blocks",
        )
    room = (rules.max_blocks - forced.sum(-1)) // kept.shape[2]
    fits = _strongest(kept, masses, room).any(dim=2) | forced
    mask = torch.where((wanted > rules.max_blocks)[..., None], fits, mask)
    return Selection.from_mask(mask, grid, masses, wanted_counts=wanted, max_blocks=rules.max_blocks)


def _strongest(kept: Tensor, masses: Tensor, room: Tensor) -> Tensor:
    """The first `room` [num_q_blocks] of each row's kept blocks, in falling order, ties by rising index."""
    falling = masses.masked_fill(~kept, -1).sort(dim=-1, descending=True, stable=True)
    places = torch.arange(kept.shape[-1], device=kept.device)
    first = torch.zeros_like(kept).scatter_(-1, falling.indices, (places < room[:, None]).expand_as(kept))
    return first & kept
