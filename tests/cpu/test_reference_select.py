"""Grid, pool, probabilities and selection of the reference against a naive statement, on ragged and tiny shapes first.

The naive functions here are independent: plain loops, one full sort per row, float64, no code of the package; written
from method.md alone, so that a slip there shows here.
"""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from prism_gen.rope import Bands
from prism_gen.runtime import reference
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.reference_pool import band_lists, pool
from prism_gen.runtime.rules import SelectRules
from prism_gen.runtime.selection import Selection, diagonal_blocks, visible_blocks
from tests.cpu.small_cases import HEADS, SHAPES, Heads, Shape, tensors

BANDS = Bands((*range(8), *range(16, 24)), tuple(range(8, 32)))  # of 32 dims; overlapping, as the paper's are


def naive_pool(x: Tensor, block_size: int) -> Tensor:
    """[batch, seqlen, heads, dim] -> [batch, heads, blocks, dim] float64 means over the valid tokens."""
    blocks = [x[:, s : s + block_size].double().mean(1) for s in range(0, x.shape[1], block_size)]
    return torch.stack(blocks, dim=2)


def visible_list(i: int, seqlen_q: int, seqlen_k: int, bq: int, bk: int) -> list[int]:
    """Key blocks that start at or before the last key the last row of query block i sees."""
    last_key = min((i + 1) * bq, seqlen_q) - 1 + seqlen_k - seqlen_q
    return [j for j in range(math.ceil(seqlen_k / bk)) if j * bk <= last_key]


def diagonal_list(i: int, seqlen_q: int, seqlen_k: int, bq: int, bk: int) -> set[int]:
    """Key blocks that hold the boundary key of some row of query block i."""
    return {(r + seqlen_k - seqlen_q) // bk for r in range(i * bq, min((i + 1) * bq, seqlen_q))}


def naive_tau(q_mean: Tensor, k_mean: Tensor, dims: list[int]) -> float:
    """Calibration of one head; q_mean, k_mean [blocks, dim]."""

    def rms(x: Tensor) -> float:
        return math.sqrt(float((x * x).mean()))

    ratio_q = rms(q_mean[:, dims]) / max(rms(q_mean), 1e-6)
    ratio_k = rms(k_mean[:, dims]) / max(rms(k_mean), 1e-6)
    return max(math.sqrt(len(dims) / q_mean.shape[1]) * ratio_q * ratio_k, 1e-6)


def naive_row_probs(q_row: Tensor, k_mean: Tensor, dims: list[int], tau: float, visible: list[int]) -> list[float]:
    """Softmax of one row over the visible blocks."""
    logits = [float(q_row[dims] @ k_mean[j, dims]) / (math.sqrt(len(dims)) * tau) for j in visible]
    top = max(logits)
    exps = [math.exp(x - top) for x in logits]
    return [x / sum(exps) for x in exps]


def naive_cut(fixed: list[int], threshold: float) -> set[int]:
    """Positions kept of one row of integers."""
    if threshold >= 1.0:
        return set(range(len(fixed)))
    parts = math.ceil(Fraction(threshold) * 2**32)
    limit = max(1, math.ceil(Fraction(sum(fixed) * parts, 2**32))) if parts > 0 else 0
    kept, total = set(), 0
    for position in sorted(range(len(fixed)), key=lambda j: (-fixed[j], j)):
        if total >= limit:
            break
        kept.add(position)
        total += fixed[position]
    return kept


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_grid_matches_the_rows(shape: Shape) -> None:
    grid = BlockGrid(*shape)
    see, diagonal = visible_blocks(grid, torch.device("cpu")), diagonal_blocks(grid, torch.device("cpu"))
    for i in range(grid.num_q_blocks):
        assert see[i].nonzero().flatten().tolist() == visible_list(i, *shape)
        assert set(diagonal[i].nonzero().flatten().tolist()) == diagonal_list(i, *shape)
    assert grid.total_visible == int(see.sum())


@pytest.mark.parametrize("seqlen", [1, 7, 8, 9, 24, 31])
def test_pool_divides_the_tail_by_its_tokens(seqlen: int) -> None:
    x = torch.randn(2, seqlen, 3, 32, dtype=torch.float64)
    mean, energy = pool(x, 8, BANDS)
    exact = naive_pool(x, 8)
    torch.testing.assert_close(mean, exact)
    for z, dims in enumerate([BANDS.high_dims, BANDS.low_dims, range(32)]):
        torch.testing.assert_close(energy[..., z], (exact[..., list(dims)] ** 2).sum(-1))


def test_pool_computes_16_bit_inputs_in_fp32() -> None:
    x = torch.randn(1, 20, 2, 32).to(torch.bfloat16)
    mean, _ = pool(x, 8, BANDS)
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean.double(), naive_pool(x, 8), rtol=0, atol=1e-6)


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_probabilities_match_naive(shape: Shape, heads: Heads) -> None:
    q, k, _ = tensors(shape, heads)
    grid = BlockGrid(*shape)
    q_mean, q_energy = pool(q, grid.block_size_q, BANDS)
    k_mean, k_energy = pool(k, grid.block_size_k, BANDS)
    probs = reference.band_probs(q_mean, k_mean, q_energy, k_energy, bands=BANDS, grid=grid)
    naive_q, naive_k = naive_pool(q, shape[2]), naive_pool(k, shape[3])
    for b in range(heads[0]):
        for h in range(heads[1]):
            kv = h // (heads[1] // heads[2])
            for z, dims in enumerate(band_lists(BANDS)):
                tau = naive_tau(naive_q[b, h], naive_k[b, kv], dims)
                for i in range(grid.num_q_blocks):
                    seen = visible_list(i, *shape)
                    row = naive_row_probs(naive_q[b, h, i], naive_k[b, kv], dims, tau, seen)
                    assert probs[b, h, z, i, seen].tolist() == pytest.approx(row, abs=1e-12)
                    assert float(probs[b, h, z, i].sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("force", [(True, True), (True, False), (False, True), (False, False)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_selected_set_matches_a_full_sort_per_row(shape: Shape, force: tuple[bool, bool]) -> None:
    """Probabilities with many exact ties (few distinct values), thresholds per head and band."""
    grid, num_heads = BlockGrid(*shape), 3
    torch.manual_seed(1)
    coarse = torch.randint(0, 4, (2, num_heads, 2, grid.num_q_blocks, grid.num_k_blocks)).int()
    coarse *= visible_blocks(grid, coarse.device)
    fixed = coarse * (reference.FIXED_ONE // (4 * grid.num_k_blocks))
    thresholds = torch.tensor([[0.3, 0.05], [0.95, 1.0], [2**-30, 0.5]])
    selection = reference.select_from_fixed(fixed, thresholds, grid, SelectRules(*force))
    mask = selection.block_mask()
    for b in range(2):
        for h in range(num_heads):
            for i in range(grid.num_q_blocks):
                seen = visible_list(i, *shape)
                expected = set().union(
                    *(naive_cut(fixed[b, h, z, i, seen].tolist(), float(thresholds[h, z])) for z in range(2)),
                    {0} if force[0] else set(),
                    diagonal_list(i, *shape) if force[1] else set(),
                )
                assert set(mask[b, h, i].nonzero().flatten().tolist()) == expected
                count = int(selection.block_counts[b, h, i])
                assert selection.block_indices[b, h, i, :count].tolist() == sorted(expected)


def test_fixed_point_rounds_halves_to_even() -> None:
    ulp = 2.0**-30
    assert reference.to_fixed(torch.tensor([0.5 * ulp, 1.5 * ulp, 2.5 * ulp, 1.0], dtype=torch.float64)).tolist() == [
        0,
        2,
        2,
        2**30,
    ]


def test_threshold_is_compared_as_an_integer_sum() -> None:
    """A row of exact halves: threshold 0.5 stops after the first (lowest index), the next fp32 up takes the second."""
    grid = BlockGrid(2, 2, 2, 1)
    fixed = torch.full((1, 1, 2, 1, 2), 2**29, dtype=torch.int32)
    just_over = float(torch.nextafter(torch.tensor(0.5), torch.tensor(1.0)))
    for threshold, kept in ((0.5, [True, False]), (just_over, [True, True])):
        assert reference.cut(fixed, torch.tensor([[threshold, threshold]]), grid)[0, 0, 0, 0].tolist() == kept


def test_threshold_one_keeps_blocks_of_probability_zero() -> None:
    grid = BlockGrid(4, 4, 1, 1)
    fixed = torch.zeros(1, 1, 2, 4, 4, dtype=torch.int32)
    fixed[..., 0] = reference.FIXED_ONE
    kept = reference.cut(fixed, torch.tensor([[1.0, 0.99]]), grid)
    assert kept[0, 0, 0].equal(torch.ones(4, 4).tril().bool())
    assert kept[0, 0, 1].sum(-1).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("which", ["q", "k", "high band of q"])
def test_all_zero_bands_give_a_uniform_row(which: str) -> None:
    q, k, _ = tensors((32, 32, 8, 8), (1, 2, 1), dtype=torch.float32)
    if which == "q":
        q.zero_()
    elif which == "k":
        k.zero_()
    else:
        q[..., list(BANDS.high_dims)] = 0
    grid = BlockGrid(32, 32, 8, 8)
    (q_mean, q_energy), (k_mean, k_energy) = pool(q, 8, BANDS), pool(k, 8, BANDS)
    probs = reference.band_probs(q_mean, k_mean, q_energy, k_energy, bands=BANDS, grid=grid)
    assert probs[0, 0, 0, 3].tolist() == [0.25] * 4
    assert bool(probs.isfinite().all())


def test_selection_mask_round_trip_drops_what_is_not_visible() -> None:
    grid = BlockGrid(40, 61, 16, 8)
    torch.manual_seed(0)
    mask = torch.rand(2, 3, grid.num_q_blocks, grid.num_k_blocks) < 0.5
    assert Selection.from_mask(mask, grid).block_mask().equal(mask & visible_blocks(grid, mask.device))
