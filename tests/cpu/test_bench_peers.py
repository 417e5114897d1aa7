"""Peers: named, lazy, and a clear reason where one cannot run."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from benchmarks.masks import attend_flops, causal_block_mask
from benchmarks.peers import Peer, Problem, attend_peers, prism_estimate, prism_unavailable, split_diagonal
from prism_gen.runtime.grid import BlockGrid
from tools.check import oracle
from tools.check.attend_speed import time_peer
from tools.check.oracle import token_mask


def problem(block_sizes: tuple[int, int] = (128, 128), *, density: float = 0.3) -> Problem:
    grid = BlockGrid(512, 512, *block_sizes)
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 512, heads, 64, generator=draw).bfloat16() for heads in (4, 2, 2))
    return Problem(q, k, v, causal_block_mask(grid, 4, density), grid, 0.125)


def test_importing_peers_imports_none_of_them() -> None:
    code = "import sys, benchmarks.peers; print([m for m in ('flash_attn', 'prism', 'cutlass') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize(
    "name", ["cudnn-dense", "flash2-dense", "flex-sparse", "fa4-dense", "fa4-sparse", "prism-sparse"]
)
def test_every_peer_says_why_it_cannot_run_here(name: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    assert attend_peers()[name].unavailable(problem())


def test_block_shapes_that_a_peer_lacks_are_named() -> None:
    assert "128" in attend_peers()["fa4-sparse"].unavailable(problem((64, 64)))
    assert "--prism-src" in prism_unavailable(None, (128, 128))


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
