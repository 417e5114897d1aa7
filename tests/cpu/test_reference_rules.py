"""The rules beside the paper's: lists shared by a group, prefix calibration, counts instead of mass, list capacity.

The naive functions are plain loops over one row, written from method.md alone.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from prism_gen.errors import TensorError
from prism_gen.rope import Bands
from prism_gen.runtime import reference
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.reference_cut import forced_blocks, least_capacity
from prism_gen.runtime.reference_pool import pool
from prism_gen.runtime.rules import CutKind, SelectRules
from prism_gen.runtime.selection import Selection, visible_blocks
from tests.cpu.small_cases import SHAPES, Shape, tensors

BANDS = Bands((*range(8), *range(16, 24)), tuple(range(8, 32)))  # of 32 dims
HEADS = (1, 6, 2)  # batch, q heads, kv heads


def select(q: Tensor, k: Tensor, grid: BlockGrid, thresholds: Tensor, rules: SelectRules) -> Selection:
    q_mean, q_energy = pool(q, grid.block_size_q, BANDS)
    k_mean, k_energy = pool(k, grid.block_size_k, BANDS)
    return reference.select(q_mean, k_mean, q_energy, k_energy, thresholds, bands=BANDS, grid=grid, rules=rules)


def coarse_fixed(grid: BlockGrid, num_lists: int) -> Tensor:
    """Few distinct values, so that every cut meets ties."""
    torch.manual_seed(3)
    coarse = torch.randint(0, 4, (1, num_lists, 2, grid.num_q_blocks, grid.num_k_blocks)).int()
    return coarse * visible_blocks(grid, coarse.device) * (reference.FIXED_ONE // (4 * grid.num_k_blocks))


def ranked(row: list[int]) -> list[int]:
    return sorted(range(len(row)), key=lambda j: (-row[j], j))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_group_shares_the_maximum_of_its_heads(shape: Shape) -> None:
    q, k, _ = tensors(shape, HEADS)
    grid = BlockGrid(*shape)
    shared = select(q, k, grid, torch.full((2, 2), 0.8), SelectRules(share="group"))
    alone = select(q, k, grid, torch.full((6, 2), 0.8), SelectRules())
    assert shared.probs is not None
    assert alone.probs is not None
    assert shared.block_indices.shape[:3] == (1, 2, grid.num_q_blocks)
    for g in range(2):
        for z in range(2):
            for i in range(grid.num_q_blocks):
                seen = grid.num_visible(i)
                heads = alone.probs[0, 3 * g : 3 * g + 3, z, i, :seen].double()
                top = [max(float(head[j]) for head in heads) for j in range(seen)]
                naive = [x / sum(top) for x in top]
                assert (shared.probs[0, g, z, i, :seen].double() / 2**30).tolist() == pytest.approx(naive, abs=1e-8)


@pytest.mark.parametrize("block_size", [(16, 16), (16, 8), (8, 8)], ids=str)
def test_prefix_calibration_makes_chunks_select_what_one_call_selects(block_size: tuple[int, int]) -> None:
    """Chunks that end at multiples of the block sizes, the last ragged; the rule of the whole call differs."""
    torch.manual_seed(0)
    q, k = torch.randn(1, 75, 6, 32).double(), torch.randn(1, 75, 2, 32).double()
    q[:, 40:] *= torch.linspace(0.2, 3.0, 32)  # the bands' energies drift along the sequence
    thresholds = torch.full((6, 2), 0.7)
    differing = {}
    for calibration in ("prefix", "sequence"):
        rules = SelectRules(calibration=calibration)
        whole = select(q, k, BlockGrid(75, 75, *block_size), thresholds, rules).probs
        assert whole is not None
        differing[calibration] = 0
        for start, end in ((0, 32), (32, 48), (48, 75)):
            chunk = select(
                q[:, start:end], k[:, :end], BlockGrid(end - start, end, *block_size), thresholds, rules
            ).probs
            assert chunk is not None
            first = start // block_size[0]
            same = whole[..., first : first + chunk.shape[-2], : chunk.shape[-1]]
            differing[calibration] += int((chunk != same).sum())
    assert differing["prefix"] == 0
    assert differing["sequence"] > 0


@pytest.mark.parametrize(
    ("kind", "threshold"), [("top_k", 1.0), ("top_k", 3.0), ("density", 0.01), ("density", 0.4), ("density", 1.0)]
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_counts_keep_the_strongest_with_ties_to_the_lower_index(shape: Shape, kind: CutKind, threshold: float) -> None:
    grid = BlockGrid(*shape)
    fixed = coarse_fixed(grid, 2)
    kept = reference.cut(fixed, torch.full((2, 2), threshold), grid, kind)
    for z in range(2):
        for i in range(grid.num_q_blocks):
            seen = grid.num_visible(i)
            count = threshold if kind == "top_k" else float(torch.tensor(threshold) * seen)
            row = fixed[0, 1, z, i, :seen].tolist()
            assert set(kept[0, 1, z, i].nonzero().flatten().tolist()) == set(ranked(row)[: math.ceil(count)])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_list_that_overflows_holds_the_strongest_that_fit(shape: Shape) -> None:
    grid, thresholds = BlockGrid(*shape), torch.full((2, 2), 0.6)
    fixed = coarse_fixed(grid, 2)
    forced = forced_blocks(grid, SelectRules(), fixed.device)
    free = reference.select_from_fixed(fixed, thresholds, grid)
    kept = reference.cut(fixed, thresholds, grid)
    for max_blocks in (least_capacity(grid, SelectRules()), least_capacity(grid, SelectRules()) + 3):
        held = reference.select_from_fixed(fixed, thresholds, grid, SelectRules(max_blocks=max_blocks))
        assert held.wanted_counts is not None
        assert held.wanted_counts.equal(free.block_counts)
        assert held.block_indices.shape[-1] == min(max_blocks, grid.num_k_blocks)
        assert int(held.block_counts.max()) <= max_blocks
        for i in range(grid.num_q_blocks):
            must = set(forced[i].nonzero().flatten().tolist())
            expected = set(free.block_mask()[0, 1, i].nonzero().flatten().tolist())
            if len(expected) > max_blocks:
                room = (max_blocks - len(must)) // 2
                bands = [[j for j in ranked(fixed[0, 1, z, i].tolist()) if kept[0, 1, z, i, j]] for z in range(2)]
                expected = must.union(*(band[:room] for band in bands))
            assert set(held.block_mask()[0, 1, i].nonzero().flatten().tolist()) == expected


def test_a_capacity_below_the_forced_blocks_is_refused() -> None:
    grid = BlockGrid(64, 64, 16, 8)
    with pytest.raises(TensorError, match="max_blocks is 2"):
        reference.select_from_fixed(coarse_fixed(grid, 2), torch.full((2, 2), 0.5), grid, SelectRules(max_blocks=2))
