"""Peers: named, lazy, and a clear reason where one cannot run."""

from __future__ import annotations

import itertools
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.masks import attend_flops, causal_block_mask
from benchmarks.peers import (
    Peer,
    Problem,
    attend_peers,
    fa4,
    flashprefill,
    prism_estimate,
    prism_unavailable,
    split_diagonal,
)
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.selection import visible_blocks
from tools.check import oracle
from tools.check.attend_speed import time_peer
from tools.check.oracle import token_mask


def problem(
    block_sizes: tuple[int, int] = (128, 128),
    *,
    density: float = 0.3,
    heads: tuple[int, int] = (4, 2),
    shared: bool = False,
    lengths: tuple[int, int] = (512, 512),
    head_dim: int = 64,
) -> Problem:
    """heads: of q and of kv. shared: one list per KV head. lengths: of q and of k."""
    grid = BlockGrid(*lengths, *block_sizes)
    draw = torch.Generator().manual_seed(0)
    q = torch.randn(1, lengths[0], heads[0], head_dim, generator=draw).bfloat16()
    k, v = (torch.randn(1, lengths[1], heads[1], head_dim, generator=draw).bfloat16() for _ in range(2))
    return Problem(q, k, v, causal_block_mask(grid, heads[shared], density), grid, 0.125)


def test_importing_peers_imports_none_of_them() -> None:
    code = "import sys, benchmarks.peers; print([m for m in ('flash_attn', 'prism', 'cutlass') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize(
    "name",
    ["cudnn-dense", "flash2-dense", "flex-sparse", "fa4-dense", "fa4-sparse", "prism-sparse", "flashprefill2-sparse"],
)
def test_every_peer_says_why_it_cannot_run_here(name: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    assert attend_peers()[name].unavailable(problem())


def test_block_shapes_that_a_peer_lacks_are_named() -> None:
    assert "128" in attend_peers()["fa4-sparse"].unavailable(problem((64, 64)))
    assert "--prism-src" in prism_unavailable(None, (128, 128))


def test_fa4_refuses_what_its_tiles_do_not_hold() -> None:
    offered = {64: [(128, 128), (128, 64)], 96: [(128, 128), (128, 64)], 192: [(128, 64)], 256: [(128, 64)]}
    for head_dim, blocks in offered.items():
        for sizes in [(128, 128), (128, 64), (32, 64)]:
            refused = "blocks" in fa4.sparse_unavailable(problem(sizes, head_dim=head_dim))
            assert refused == (sizes not in blocks), (head_dim, sizes)
    assert "head_dim" in fa4.unavailable(problem(head_dim=264))


def test_peers_that_align_the_mask_at_the_top_refuse_a_prefix() -> None:
    behind = problem(lengths=(256, 512))
    refused = [name for name, peer in attend_peers().items() if "equal lengths" in peer.unavailable(behind)]
    assert refused == ["cudnn-dense", "flash2-dense", "flex-sparse", "prism-sparse"]


def test_a_missing_prism_checkout_is_an_import_error(tmp_path: object) -> None:
    p = problem()
    with pytest.raises(ImportError):
        prism_estimate(str(tmp_path), p.q, p.k, 128)


@pytest.mark.parametrize("block_sizes", [(128, 128), (128, 64), (64, 64)], ids=str)
def test_the_split_lists_stand_for_the_mask(block_sizes: tuple[int, int]) -> None:
    """What a peer is given, diagonal blocks with the causal mask and the others whole, is exactly our mask."""
    p = problem(block_sizes)
    partial, full = split_diagonal(p)
    whole = token_mask(full, p.grid)
    assert not (partial & full).any()
    assert torch.equal(whole, full.repeat_interleave(block_sizes[0], 1).repeat_interleave(block_sizes[1], 2))
    assert torch.equal(whole | token_mask(partial, p.grid), token_mask(p.block_mask, p.grid))


def test_heads_of_a_group_share_their_mask() -> None:
    p = problem((32, 64), shared=True)
    assert torch.equal(p.head_mask, p.block_mask[[0, 0, 1, 1]])
    whole = problem()
    assert whole.head_mask is whole.block_mask


@pytest.mark.parametrize(
    ("block_sizes", "heads", "lengths"),
    [
        ((32, 64), (8, 2), (512, 512)),
        ((64, 64), (8, 2), (512, 512)),
        ((32, 128), (8, 2), (512, 512)),
        ((64, 128), (4, 2), (330, 330)),
        ((32, 64), (8, 2), (77, 1000)),
        ((128, 128), (2, 2), (300, 500)),
        ((64, 192), (16, 1), (65, 400)),
    ],
    ids=str,
)
def test_the_tiles_of_flashprefill_stand_for_the_lists(
    block_sizes: tuple[int, int], heads: tuple[int, int], lengths: tuple[int, int]
) -> None:
    """A packed row attends to the keys that our mask gives its position, tile by tile, and no tile is wasted."""
    p = problem(block_sizes, heads=heads, shared=True, lengths=lengths)
    assert not flashprefill.lists_unavailable(p)
    lists = flashprefill.tile_lists(p)
    tile_positions = flashprefill.TILE_ROWS // p.group_size
    tiles = BlockGrid(*lengths, tile_positions, flashprefill.TILE_KEYS)
    assert lists.num_tiles == -(-lengths[0] * p.group_size // flashprefill.TILE_ROWS) == tiles.num_q_blocks
    mask = torch.zeros(heads[1] * lists.num_tiles, tiles.num_k_blocks, dtype=torch.bool)
    for row, (start, stop) in enumerate(itertools.pairwise(lists.offsets.tolist())):
        run = lists.indices[start:stop]
        assert torch.equal(run, run.unique()), "a run rises"
        mask[row, run] = True
    mask = mask.view(heads[1], lists.num_tiles, -1)
    assert not (mask & ~visible_blocks(tiles, mask.device)).any()
    assert torch.equal(token_mask(mask, tiles), token_mask(p.block_mask, p.grid))


def test_flashprefill_refuses_lists_that_are_not_its_tiles(tmp_path: Path) -> None:
    library = tmp_path / "flashprefill2.so"
    assert "--flashprefill-lib" in flashprefill.unavailable(str(library), problem((32, 64), shared=True))
    library.touch()
    reason = partial(flashprefill.unavailable, str(library))
    assert "head_dim 128" in reason(problem((32, 64), heads=(8, 2), shared=True))
    assert "one per q head" in reason(problem((128, 64), head_dim=128))
    assert "128 packed rows" in reason(problem((32, 64), heads=(4, 2), head_dim=128, shared=True))
    assert "128 packed rows" in reason(problem((128, 64), heads=(6, 2), head_dim=128, shared=True))
    assert "GPU" in reason(problem((32, 64), heads=(8, 2), head_dim=128, shared=True))


def test_a_sparse_peer_is_timed_and_compared() -> None:
    p = problem()
    mask = token_mask(p.block_mask[None], p.grid)
    peer = Peer("exact", True, lambda _: "", lambda p: lambda: oracle.attend(p.q, p.k, p.v, mask, p.softmax_scale)[0])
    ours = peer.prepare(p)()
    agreed = time_peer(p, peer, ours)
    assert not agreed.problems
    expected = attend_flops(p.block_mask, p.grid, 64) / agreed.figures["ms"] / 1e9
    assert agreed.figures["tflops"] == pytest.approx(expected, abs=0.051)
    assert "differs from ours" in time_peer(p, peer, ours * 1.1).problems[0]


def test_a_dense_peer_counts_dense_flops_and_is_not_compared() -> None:
    p = problem()
    peer = Peer("zeros", False, lambda _: "", lambda p: lambda: torch.zeros_like(p.q))
    found = time_peer(p, peer, p.q)
    assert not found.problems
    dense = 4 * 64 * 4 * (512 * 512 / 2)
    assert found.figures["tflops"] == pytest.approx(dense / found.figures["ms"] / 1e9, abs=0.051)
