"""Plain-torch select and attend, beside pool (reference_pool.py): the meaning of every kernel, in any float dtype.

Owns the semantics of method.md and templates/README.md, written to be read first and fast second. Must not import
kernels, and never holds a score matrix of more than one query block of one head.

Arithmetic: bf16 and fp16 inputs are computed in fp32; fp32 and fp64 inputs in their own dtype, so .double() tensors
give the exact answer that kernels are measured against.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from prism_gen.model import CalibrationMode
from prism_gen.rope import Bands
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.reference_cut import FIXED_ONE, cut, select_from_fixed, shares, to_fixed
from prism_gen.runtime.reference_pool import band_lists, compute_dtype
from prism_gen.runtime.rules import PAPER_RULES, SelectRules
from prism_gen.runtime.selection import Selection, visible_blocks

__all__ = ["FIXED_ONE", "cut", "select_from_fixed", "shares", "to_fixed"]  # callers take them from here

MIN_RMS = 1e-6  # clamp of r(q), r(k) and tau, so that a head or a band of zeros gives logits of 0 instead of 0/0


def band_probs(
    q_mean: Tensor,
    k_mean: Tensor,
    q_energy: Tensor,
    k_energy: Tensor,
    *,
    bands: Bands,
    grid: BlockGrid,
    calibrate_by: CalibrationMode = "sequence",
) -> Tensor:
    """Calibrated row softmax of each band over the visible key blocks.

    Means and energies as pool returns them, q's with num_q_heads, k's with num_kv_heads.
    Returns [batch, num_q_heads, 2, num_q_blocks, num_k_blocks] in the means' dtype; 0 where not visible.
    Source: method.md steps 3 and 4.
    """
    batch, num_q_heads, _, head_dim = q_mean.shape
    num_kv_heads = k_mean.shape[1]
    grouped = q_mean.reshape(batch, num_kv_heads, -1, grid.num_q_blocks, head_dim)
    if calibrate_by == "sequence":
        tau = calibration(q_energy, k_energy, bands=bands, head_dim=head_dim)
    else:
        tau = prefix_calibration(q_energy, k_energy, bands=bands, head_dim=head_dim, grid=grid)
    hidden = ~visible_blocks(grid, q_mean.device)
    probs = q_mean.new_empty(batch, num_q_heads, 2, grid.num_q_blocks, grid.num_k_blocks)
    for z, dims in enumerate(band_lists(bands)):
        logits = (grouped[..., dims] @ k_mean[:, :, None, :, dims].transpose(-1, -2)).flatten(1, 2)
        logits /= (math.sqrt(len(dims)) * tau[:, :, z])[..., None]
        probs[:, :, z] = logits.masked_fill_(hidden, -math.inf).softmax(-1)
    return probs


def calibration(q_energy: Tensor, k_energy: Tensor, *, bands: Bands, head_dim: int) -> Tensor:
    """tau_z of each q head and band over the whole call, [batch, num_q_heads, 2, 1].

    r(q), r(k) and tau are clamped at 1e-6. Source: method.md step 3.
    """
    energies = (energy.mean(dim=2, keepdim=True) for energy in (q_energy, k_energy))
    return _tau(*energies, bands=bands, head_dim=head_dim)


def prefix_calibration(q_energy: Tensor, k_energy: Tensor, *, bands: Bands, head_dim: int, grid: BlockGrid) -> Tensor:
    """tau_z from a query block's own mean and the keys that it sees, [batch, num_q_heads, 2, num_q_blocks].

    Source: method.md step 3, prefix calibration.
    """
    seen = visible_blocks(grid, k_energy.device).to(k_energy.dtype)
    return _tau(q_energy, (seen @ k_energy) / seen.sum(-1, keepdim=True), bands=bands, head_dim=head_dim)


def _tau(q_energy: Tensor, k_energy: Tensor, *, bands: Bands, head_dim: int) -> Tensor:
    """tau_z from mean energies [batch, heads, rows, 3]: [batch, num_q_heads, 2, rows]."""
    widths = torch.tensor([*map(len, band_lists(bands)), head_dim], dtype=q_energy.dtype, device=q_energy.device)

    def band_ratio(energy: Tensor) -> Tensor:
        rms = (energy / widths).sqrt()
        return rms[..., :-1] / rms[..., -1:].clamp_min(MIN_RMS)

    group_size = q_energy.shape[1] // k_energy.shape[1]
    k_ratio = band_ratio(k_energy).repeat_interleave(group_size, dim=1)
    tau = ((widths[:-1] / head_dim).sqrt() * band_ratio(q_energy) * k_ratio).clamp_min(MIN_RMS)
    return tau.transpose(-1, -2)


def group_probs(probs: Tensor, num_kv_heads: int) -> Tensor:
    """One distribution per KV group: the maximum over its q heads, renormalised.

    probs: [batch, num_q_heads, 2, num_q_blocks, num_k_blocks]; returns the same with num_kv_heads.
    Source: method.md step 5.
    """
    batch, _, *row = probs.shape
    strongest = probs.reshape(batch, num_kv_heads, -1, *row).amax(dim=2)
    return strongest / strongest.sum(-1, keepdim=True)


def select(
    q_mean: Tensor,
    k_mean: Tensor,
    q_energy: Tensor,
    k_energy: Tensor,
    thresholds: Tensor,
    *,
    bands: Bands,
    grid: BlockGrid,
    rules: SelectRules = PAPER_RULES,
) -> Selection:
    """band_probs, to_fixed and select_from_fixed in one; the result carries the masses.

    thresholds: fp32 [num_lists, 2]. Raises: TensorError as select_from_fixed does.
    """
    probs = band_probs(q_mean, k_mean, q_energy, k_energy, bands=bands, grid=grid, calibrate_by=rules.calibration)
    if rules.share == "group":
        probs = group_probs(probs, k_mean.shape[1])
    return select_from_fixed(to_fixed(probs), thresholds, grid, rules)


def attend(q: Tensor, k: Tensor, v: Tensor, selection: Selection, *, softmax_scale: float) -> tuple[Tensor, Tensor]:
    """Softmax attention over the selected visible keys.

    q: [batch, seqlen_q, num_q_heads, head_dim]; k, v: [batch, seqlen_k, num_kv_heads, head_dim]; any strides.
    Returns out like q, in q's dtype, and lse (natural log) [batch, num_q_heads, seqlen_q] in the compute dtype.
    A selection with num_kv_heads lists serves all q heads of a group with one.
    A row with no visible selected key gets out 0 and lse -inf.
    Source: method.md step 6.
    """
    grid, dtype = selection.grid, compute_dtype(q)
    group_size, heads_per_list = q.shape[2] // k.shape[2], q.shape[2] // selection.block_counts.shape[1]
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[0], q.shape[2], q.shape[1], dtype=dtype, device=q.device)
    counts, whole = selection.block_counts.tolist(), _whole_counts(selection)
    for b in range(q.shape[0]):
        for kv_head in range(k.shape[2]):
            k_blocks, v_blocks = (_token_blocks(x[b, :, kv_head].to(dtype), grid) for x in (k, v))
            for h in range(kv_head * group_size, (kv_head + 1) * group_size):
                of = h // heads_per_list
                for i in range(grid.num_q_blocks):
                    rows = slice(i * grid.block_size_q, (i + 1) * grid.block_size_q)
                    chosen = selection.block_indices[b, of, i, : counts[b][of][i]].long()
                    scores = q[b, rows, h].to(dtype) @ k_blocks[chosen].flatten(0, 1).T
                    scores *= softmax_scale
                    _mask_after_boundary(scores, chosen, whole[b][of][i], rows.start, grid)
                    out[b, rows, h], lse[b, h, rows] = _softmax_times(scores, v_blocks[chosen].flatten(0, 1))
    return out, lse


def _token_blocks(x: Tensor, grid: BlockGrid) -> Tensor:
    """[seqlen_k, head_dim] -> [num_k_blocks, block_size_k, head_dim], zeros after the last token."""
    padded = F.pad(x, (0, 0, 0, grid.num_k_blocks * grid.block_size_k - grid.seqlen_k))
    return padded.reshape(grid.num_k_blocks, grid.block_size_k, -1)


def _whole_counts(selection: Selection) -> list[list[list[int]]]:
    """How many of each row's leading blocks every query row sees whole, so that they need no mask."""
    grid, device = selection.grid, selection.block_indices.device
    first = torch.tensor([grid.first_diagonal(i) for i in range(grid.num_q_blocks)], device=device)
    in_use = torch.arange(selection.block_indices.shape[-1], device=device) < selection.block_counts[..., None]
    counts: list[list[list[int]]] = ((selection.block_indices < first[:, None]) & in_use).sum(-1).tolist()
    return counts


def _mask_after_boundary(scores: Tensor, chosen: Tensor, num_whole: int, first_row: int, grid: BlockGrid) -> None:
    """Hides keys after each row's causal boundary; in place. Keys past seqlen_k lie after every boundary."""
    tokens = torch.arange(grid.block_size_k, device=scores.device)
    keys = (chosen[num_whole:, None] * grid.block_size_k + tokens).flatten()
    boundary = torch.arange(scores.shape[0], device=scores.device)[:, None] + (first_row + grid.prefix)
    scores[:, num_whole * grid.block_size_k :].masked_fill_(keys > boundary, -math.inf)


def _softmax_times(scores: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Row softmax of scores times v, and its log-sum-exp; rows without a finite score give 0 and -inf."""
    if scores.shape[1] == 0:
        return v.new_zeros(scores.shape[0], v.shape[1]), v.new_full((scores.shape[0],), -math.inf)
    top = scores.amax(dim=1, keepdim=True)
    top = torch.where(top == -math.inf, 0.0, top)
    weights = (scores - top).exp_()
    total = weights.sum(dim=1, keepdim=True)
    out = (weights @ v) / torch.where(total == 0, 1.0, total)
    return out, (top + total.log()).squeeze(1)


def block_mass(q: Tensor, k: Tensor, dense_lse: Tensor, grid: BlockGrid, *, softmax_scale: float) -> Tensor:
    """Dense attention's probability on each key block, mean over the valid rows of each query block.

    q, k as for attend. dense_lse: attend's lse with every visible block selected. Returns [batch, num_q_heads,
    num_q_blocks, num_k_blocks] in the compute dtype; a row sums to 1.
    """
    batch, _, num_q_heads, _ = q.shape
    dtype, group_size = compute_dtype(q), num_q_heads // k.shape[2]
    mass = torch.zeros(batch, num_q_heads, grid.num_q_blocks, grid.num_k_blocks, dtype=dtype, device=q.device)
    for b in range(batch):
        for h in range(num_q_heads):
            k_blocks = _token_blocks(k[b, :, h // group_size].to(dtype), grid)
            for i in range(grid.num_q_blocks):
                rows = slice(i * grid.block_size_q, (i + 1) * grid.block_size_q)
                seen = torch.arange(grid.num_visible(i), device=q.device)
                scores = q[b, rows, h].to(dtype) @ k_blocks[seen].flatten(0, 1).T * softmax_scale
                _mask_after_boundary(scores, seen, grid.first_diagonal(i), rows.start, grid)
                probs = (scores - dense_lse[b, h, rows, None]).exp()
                mass[b, h, i, : len(seen)] = probs.reshape(len(scores), len(seen), -1).sum(-1).mean(0)
    return mass
