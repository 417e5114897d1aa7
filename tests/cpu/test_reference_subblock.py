"""The subblock estimator: against plain loops over one sub-row, and what chunks, batches and groups may not change."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from prism_gen.runtime import reference_subblock
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.reference_cut import FIXED_ONE, forced_blocks
from prism_gen.runtime.reference_pool import pool
from prism_gen.runtime.rules import SelectRules
from prism_gen.runtime.selection import Selection, visible_blocks
from prism_gen.sub_blocks import SubBlocks
from tests.cpu.small_cases import HEADS, SHAPES, Heads, Shape, tensors

SCALE = 0.3  # sharp enough that the rows of these tensors differ


def select(
    q: Tensor, k: Tensor, grid: BlockGrid, fine: SubBlocks, rules: SelectRules | None = None, threshold: float = 0.8
) -> Selection:
    rules = rules or SelectRules()
    q_mean, k_mean = pool(q, fine.q, None)[0], pool(k, fine.k, None)[0]
    thresholds = torch.full((rules.num_lists(q.shape[2], k.shape[2]), 1), threshold)
    return reference_subblock.select(
        q_mean, k_mean, thresholds, sub_blocks=fine, grid=grid, softmax_scale=SCALE, rules=rules
    )


def naive_masses(q: Tensor, k: Tensor, grid: BlockGrid, fine: SubBlocks, q_block: int) -> list[list[float]]:
    """What each sub-row of one head's query block sees on each key block: q [seqlen_q, dim], k [seqlen_k, dim]."""
    masses = []
    block_end = min((q_block + 1) * grid.block_size_q, grid.seqlen_q)
    for start in range(q_block * grid.block_size_q, block_end, fine.q):
        end = min(start + fine.q, grid.seqlen_q)
        row = q[start:end].mean(0)
        firsts = [t for t in range(0, grid.seqlen_k, fine.k) if t <= end - 1 + grid.prefix]
        weights = [math.exp(SCALE * float(row @ k[t : t + fine.k].mean(0))) for t in firsts]
        mass = [0.0] * grid.num_k_blocks
        for t, weight in zip(firsts, weights, strict=True):
            mass[t // grid.block_size_k] += weight / sum(weights)
        masses.append(mass)
    return masses


@pytest.mark.parametrize("fine", [SubBlocks(4, 8), SubBlocks(8, 4), SubBlocks(4, 4, "mean")], ids=str)
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_probabilities_are_those_of_plain_loops(shape: Shape, heads: Heads, fine: SubBlocks) -> None:
    q, k, _ = tensors(shape, heads)
    grid, group = BlockGrid(*shape), heads[1] // heads[2]
    found = select(q, k, grid, fine)
    shared = select(q, k, grid, fine, SelectRules(share="group"))
    assert found.probs is not None
    assert shared.probs is not None
    for i in range(grid.num_q_blocks):
        for g in range(heads[2]):
            of_group = []
            for h in range(g * group, (g + 1) * group):
                masses = naive_masses(q[0, :, h], k[0, :, g], grid, fine, i)
                assert row_of(found, h, i) == pytest.approx(reduced(masses, fine), abs=2 / FIXED_ONE)
                of_group += masses
            assert row_of(shared, g, i) == pytest.approx(reduced(of_group, fine), abs=2 / FIXED_ONE)


def row_of(selection: Selection, of_list: int, q_block: int) -> list[float]:
    assert selection.probs is not None
    row: list[float] = (selection.probs[0, of_list, 0, q_block].double() / FIXED_ONE).tolist()
    return row


def reduced(masses: list[list[float]], fine: SubBlocks) -> list[float]:
    columns = list(zip(*masses, strict=True))
    scores = [max(c) if fine.reduce == "max" else sum(c) / len(c) for c in columns]
    return [score / sum(scores) for score in scores]


@pytest.mark.parametrize("fine", [SubBlocks(4, 8), SubBlocks(8, 8, "mean"), SubBlocks(4, 4, "max", True)], ids=str)
@pytest.mark.parametrize("block_size", [(16, 16), (16, 8), (8, 8)], ids=str)
def test_chunks_that_end_at_blocks_select_what_one_call_selects(block_size: tuple[int, int], fine: SubBlocks) -> None:
    """Ragged at the end; without any calibration there is nothing that could look ahead."""
    q, k, _ = tensors((75, 75, *block_size), (2, 4, 2))
    whole = select(q, k, BlockGrid(75, 75, *block_size), fine).probs
    assert whole is not None
    for start, end in ((0, 32), (32, 48), (48, 75)):
        chunk = select(q[:, start:end], k[:, :end], BlockGrid(end - start, end, *block_size), fine).probs
        assert chunk is not None
        first = start // block_size[0]
        assert chunk.equal(whole[..., first : first + chunk.shape[-2], : chunk.shape[-1]])


def test_a_batch_changes_no_sequence() -> None:
    q, k, _ = tensors((40, 61, 16, 8), (3, 4, 2))
    grid, fine = BlockGrid(40, 61, 16, 8), SubBlocks(4, 8)
    together = select(q, k, grid, fine)
    for b in range(3):
        alone = select(q[b : b + 1], k[b : b + 1], grid, fine)
        assert alone.probs is not None
        assert together.probs is not None
        assert alone.probs[0].equal(together.probs[b])
        assert alone.block_counts[0].equal(together.block_counts[b])


def test_the_maximum_keeps_what_one_sub_row_needs() -> None:
    """Sub-row 0 looks at key block 0 alone, the others elsewhere: the mean forgets it, the maximum does not."""
    k = torch.zeros(1, 64, 1, 32, dtype=torch.float64)
    k[0, 16:24, 0, 0], k[0, 48:, 0, 1] = 60.0, 60.0
    q = torch.zeros(1, 16, 1, 32, dtype=torch.float64)
    q[0, :4, 0, 0], q[0, 4:, 0, 1] = 1.0, 1.0
    grid, rules = BlockGrid(16, 64, 16, 16), SelectRules(force_sink=False)
    kept = {
        reduce: select(q, k, grid, SubBlocks(4, 8, reduce), rules, 0.7).block_mask()[0, 0, 0].tolist()
        for reduce in ("max", "mean")
    }
    assert kept["max"] == [False, True, False, True]
    assert kept["mean"] == [False, False, False, True]


@pytest.mark.parametrize("rules", [SelectRules(), SelectRules(force_sink=False)], ids=["sink", "no-sink"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_excluded_forced_blocks_leave_the_threshold_to_the_others(shape: Shape, rules: SelectRules) -> None:
    q, k, _ = tensors(shape, (1, 2, 1))
    grid = BlockGrid(*shape)
    forced = forced_blocks(grid, rules, q.device)
    plain = select(q, k, grid, SubBlocks(4, 8), rules)
    found = select(q, k, grid, SubBlocks(4, 8, "max", True), rules)
    assert plain.probs is not None
    for h in range(2):
        for i in range(grid.num_q_blocks):
            row = [0 if forced[i, j] else int(x) for j, x in enumerate(plain.probs[0, h, 0, i])]
            if not any(row):
                row = plain.probs[0, h, 0, i].tolist()
            assert row_of(found, h, i) == pytest.approx([x / sum(row) for x in row], rel=1e-6, abs=1e-8)
    assert bool((forced <= found.block_mask()).all())


def test_a_row_with_nothing_but_forced_blocks_keeps_no_other() -> None:
    """The mass beside sink and diagonal underflows to 0: the cut may not take every block of a row of zeros."""
    k = torch.zeros(1, 64, 1, 32)
    k[0, :16, 0, 0] = 1e4
    q = torch.ones(1, 16, 1, 32)
    kept = select(q, k, BlockGrid(16, 64, 16, 16), SubBlocks(4, 8, "max", True))
    assert kept.block_mask()[0, 0, 0].tolist() == [True, False, False, True]


def test_a_threshold_of_one_keeps_every_visible_block() -> None:
    q, k, _ = tensors((40, 61, 16, 8), (1, 2, 1))
    grid = BlockGrid(40, 61, 16, 8)
    for exclude in (False, True):
        kept = select(q, k, grid, SubBlocks(4, 8, "max", exclude), threshold=1.0).block_mask()
        assert kept.equal(visible_blocks(grid, q.device).expand_as(kept))


@pytest.mark.parametrize("max_blocks", [5, 7])
def test_a_full_list_holds_the_strongest_of_the_one_distribution(max_blocks: int) -> None:
    q, k, _ = tensors((48, 96, 16, 8), (1, 2, 1))
    grid = BlockGrid(48, 96, 16, 8)
    free = select(q, k, grid, SubBlocks(4, 8), threshold=0.95)
    held = select(q, k, grid, SubBlocks(4, 8), SelectRules(max_blocks=max_blocks), 0.95)
    assert held.wanted_counts is not None
    assert held.wanted_counts.equal(free.block_counts)
    forced = forced_blocks(grid, SelectRules(), q.device)
    for i in range(grid.num_q_blocks):
        must = set(forced[i].nonzero().flatten().tolist())
        row = row_of(free, 1, i)
        ranked = sorted((j for j in range(grid.num_visible(i))), key=lambda j, row=row: (-row[j], j))
        expected = must | set(ranked[: max_blocks - len(must)])
        if int(free.block_counts[0, 1, i]) > max_blocks:
            assert set(held.block_mask()[0, 1, i].nonzero().flatten().tolist()) == expected
