"""Benchmark masks: their density, their fixed parts, their compact lists and the FLOPs they count for."""

from __future__ import annotations

import pytest
import torch

from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.selection import Selection, diagonal_blocks, visible_blocks
from prism_gen.verify.masks import UNUSED_INDEX, attend_flops, causal_block_mask, causal_pairs, compact, density_of

CPU = torch.device("cpu")
SHAPES = [(128, 128), (128, 64), (64, 64)]
HEAD_DIM = 128


def square(num_blocks: int, block_size: int = 128) -> BlockGrid:
    return BlockGrid(num_blocks * block_size, num_blocks * block_size, block_size, block_size)


@pytest.mark.parametrize(
    ("num_blocks", "asked", "published"),
    [
        (64, 0.10, 0.119),
        (64, 0.25, 0.241),
        (256, 0.10, 0.098),
        (256, 0.25, 0.235),
        (1024, 0.10, 0.0975),
        (1024, 0.25, 0.234),
    ],
)
def test_density_is_that_of_the_published_figures(num_blocks: int, asked: float, published: float) -> None:
    heads = 32 if num_blocks < 1024 else 4  # the spread between heads falls with the length
    mask = causal_block_mask(square(num_blocks), heads, asked)
    assert density_of(mask, square(num_blocks)) == pytest.approx(published, rel=0.03)


@pytest.mark.parametrize("block_sizes", SHAPES, ids=str)
def test_mask_keeps_sink_band_and_diagonal_and_nothing_out_of_sight(block_sizes: tuple[int, int]) -> None:
    grid = BlockGrid(3000, 5000, *block_sizes)
    mask = causal_block_mask(grid, 3, 0.1)
    assert mask[:, :, 0].all()
    assert mask[:, diagonal_blocks(grid, CPU)].all()
    assert not mask[:, ~visible_blocks(grid, CPU)].any()
    for i in range(grid.num_q_blocks):
        start = max(grid.first_diagonal(i) - block_sizes[0] // block_sizes[1], 0)
        assert mask[:, i, start : grid.num_visible(i)].all()


@pytest.mark.parametrize("block_sizes", SHAPES, ids=str)
def test_rectangular_and_prefixed_masks_reach_the_density(block_sizes: tuple[int, int]) -> None:
    grid = BlockGrid(16384, 32768, *block_sizes)
    mask = causal_block_mask(grid, 8, 0.2)
    assert density_of(mask, grid) == pytest.approx(0.19, abs=0.015)


def test_heads_differ_and_seeds_repeat() -> None:
    first, again, other = (causal_block_mask(square(64), 2, 0.2, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_density_one_selects_everything_visible() -> None:
    grid = BlockGrid(1000, 1500, 128, 64)
    mask = causal_block_mask(grid, 2, 1.0)
    assert torch.equal(mask, visible_blocks(grid, CPU).expand_as(mask))


def test_compact_lists_hold_the_mask_and_mark_what_is_unused() -> None:
    grid = BlockGrid(1000, 2000, 128, 64)
    mask = causal_block_mask(grid, 3, 0.3)[None]
    mask[0, 1, 2] = False
    indices, counts = compact(mask)
    assert torch.equal(Selection(indices, counts, grid).block_mask(), mask)
    assert indices.dtype == counts.dtype == torch.int32
    used = torch.arange(indices.shape[-1]) < counts[..., None]
    assert (indices[~used] == UNUSED_INDEX).all()
    assert ((indices[..., 1:] > indices[..., :-1]) | ~used[..., 1:]).all()
    assert counts[0, 1, 2] == 0


def test_compact_equals_the_runtime_s_own_lists() -> None:
    grid = BlockGrid(900, 900, 64, 64)
    mask = causal_block_mask(grid, 2, 0.3)[None]
    selection = Selection.from_mask(mask, grid)
    indices, counts = compact(mask)
    assert torch.equal(indices, selection.block_indices)
    assert torch.equal(counts, selection.block_counts)


def test_compact_fits_the_capacity_or_refuses() -> None:
    mask = torch.tensor([[[True, False, True, True]]])
    assert compact(mask, capacity=3)[0].tolist() == [[[0, 2, 3]]]
    with pytest.raises(ValueError, match="capacity is 2, a row selects 3"):
        compact(mask, capacity=2)


def test_square_flops_count_a_diagonal_block_as_half() -> None:
    grid = square(16)
    mask = causal_block_mask(grid, 4, 0.3)
    selected, diagonal = int(mask.sum()), 4 * 16
    assert attend_flops(mask, grid, HEAD_DIM) == 4 * 128 * 128 * HEAD_DIM * (selected - diagonal / 2)


def test_rectangular_diagonal_blocks_count_three_and_one_quarter() -> None:
    pairs = causal_pairs(BlockGrid(256, 256, 128, 64))
    block = 128 * 64
    assert pairs.tolist() == [[0.75 * block, 0.25 * block, 0, 0], [block, block, 0.75 * block, 0.25 * block]]


@pytest.mark.parametrize("block_sizes", SHAPES, ids=str)
@pytest.mark.parametrize("lengths", [(1, 1), (100, 300), (129, 129), (333, 1000), (64, 64)], ids=str)
def test_pairs_are_the_visible_pairs_less_half_a_key_per_query(
    lengths: tuple[int, int], block_sizes: tuple[int, int]
) -> None:
    grid = BlockGrid(*lengths, *block_sizes)
    visible_pairs = sum(row + grid.prefix + 1 for row in range(grid.seqlen_q))
    assert float(causal_pairs(grid).sum()) == visible_pairs - grid.seqlen_q / 2
