"""Peers: named, lazy, and a clear reason where one cannot run."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
import torch

from prism_gen.bench.figures import OURS
from prism_gen.bench.peers import (
    Peer,
    Problem,
    attend_peers,
    fa4,
    flash_attn,
    flashprefill,
    prism_estimate,
    prism_unavailable,
    split_diagonal,
)
from prism_gen.bench.timing import MIN_RUNS
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.selection import visible_blocks
from prism_gen.verify import oracle
from prism_gen.verify.masks import attend_flops, causal_block_mask
from prism_gen.verify.oracle import token_mask
from prism_gen.verify.report import Findings
from tools.check.attend_speed import Race


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
    code = (
        "import sys, prism_gen.bench.peers; print([m for m in ('flash_attn', 'prism', 'cutlass') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize("name", attend_peers())
def test_every_peer_says_why_it_cannot_run_here(name: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    assert attend_peers()[name].unavailable(problem())


def test_block_shapes_that_a_peer_lacks_are_named() -> None:
    assert "128" in attend_peers()["fa4-sparse"].unavailable(problem((32, 64)))
    assert "--prism-src" in prism_unavailable(None, (128, 128))


def test_fa4_refuses_what_its_tiles_do_not_hold() -> None:
    refused = {192: [(128, 128)], 256: [(128, 128), (64, 128)]}
    for head_dim in (64, 96, 128, 192, 256):
        for sizes in [(128, 128), (128, 64), (64, 64), (64, 128), (32, 64)]:
            expected = sizes[0] == 32 or sizes in refused.get(head_dim, [])
            assert ("tiles" in fa4.sparse_unavailable(problem(sizes, head_dim=head_dim))) == expected, (head_dim, sizes)
    assert "head_dim" in fa4.unavailable(problem(head_dim=264))


def test_fa4_packs_lists_of_a_group_into_whole_tiles() -> None:
    assert "one per q head" in fa4.packed_unavailable(problem((32, 64), heads=(8, 2)))
    assert "tiles" in fa4.packed_unavailable(problem((32, 64), heads=(6, 2), shared=True))
    tiles = {(32, 64): (128, 64), (64, 64): (128, 64), (32, 128): (128, 128), (16, 64): (64, 64)}
    for sizes, tile in tiles.items():
        assert fa4.tile_mn(problem(sizes, heads=(8, 2), shared=True), 4) == tile


def fake_fa4_fwd(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    softmax_scale: float,
    mask_mod: int,
    block_sparse_tensors: tuple,
    **options: object,
) -> tuple[torch.Tensor]:
    """Exact attention on lists as FA4 reads them; mask_mod is the number of rows of one position."""
    partial_counts, partial_indices, full_counts, full_indices = block_sparse_tensors[:4]
    block_size_q, block_size_k = block_sparse_tensors[4]
    assert options == {"causal": False, "pack_gqa": False, "tile_mn": (min(block_size_q, 128), block_size_k)}
    rows, keys = q.shape[1], k.shape[1]

    def tokens(counts: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        chosen = torch.arange(indices.shape[-1]) < counts[..., None]
        blocks = torch.zeros(*counts.shape, -(-keys // block_size_k) + 1, dtype=torch.bool)
        blocks.scatter_(-1, torch.where(chosen, indices.long(), blocks.shape[-1] - 1), True)
        return blocks[..., :-1].repeat_interleave(block_size_q, -2)[..., :rows, :].repeat_interleave(block_size_k, -1)

    last_seen = torch.arange(rows) // mask_mod + keys - rows // mask_mod
    seen = torch.arange(keys) <= last_seen[:, None]
    mask = tokens(partial_counts, partial_indices)[..., :keys] & seen | tokens(full_counts, full_indices)[..., :keys]
    return (oracle.attend(q, k, v, mask, softmax_scale)[0].to(q.dtype),)


@pytest.mark.parametrize(
    ("name", "sizes", "shared"),
    [
        ("fa4-sparse", (128, 64), False),
        ("fa4-sparse", (128, 128), True),
        ("fa4-packed", (32, 64), True),
        ("fa4-packed", (64, 64), True),
    ],
)
def test_fa4_is_given_our_mask(
    name: str, sizes: tuple[int, int], shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("flash_attn", "flash_attn.cute", "flash_attn.cute.block_sparsity", "flash_attn.cute.interface")
    modules = {name: ModuleType(name) for name in (*names, "prism_gen.bench.peers.fa4_mask")}
    fields = ["partial_counts", "partial_indices", "full_counts", "full_indices", "block_size"]
    modules[names[2]].BlockSparseTensorsTorch = namedtuple("Lists", fields)  # type: ignore[attr-defined]
    modules[names[3]]._flash_attn_fwd = fake_fa4_fwd  # type: ignore[attr-defined]
    modules["prism_gen.bench.peers.fa4_mask"].causal = int  # type: ignore[attr-defined]
    for module in modules.values():
        monkeypatch.setitem(sys.modules, module.__name__, module)
    p = problem(sizes, heads=(8, 2), shared=shared, lengths=(200, 330))
    out = attend_peers()[name].prepare(p)().reshape(p.q.shape)
    exact, _ = oracle.attend(p.q, p.k, p.v, token_mask(p.head_mask[None], p.grid), p.softmax_scale)
    assert oracle.max_abs(out.double() - exact) < 2e-2


def test_packed_rows_are_positions_by_heads_and_come_back() -> None:
    p = problem((32, 64), heads=(8, 2), shared=True, lengths=(77, 200))
    rows = fa4.pack_rows(p.q, 2)
    assert rows.shape == (2, 77 * 4, 1, 64)
    assert rows.is_contiguous()
    assert torch.equal(rows[1, 5 * 4 + 3, 0], p.q[0, 5, 7])
    assert torch.equal(fa4.unpack_rows(rows, 77).reshape(p.q.shape), p.q)


def test_peers_that_align_the_mask_at_the_top_refuse_a_prefix() -> None:
    behind = problem(lengths=(256, 512))
    refused = [name for name, peer in attend_peers().items() if "equal lengths" in peer.unavailable(behind)]
    assert refused == ["cudnn-dense", "flash2-dense", "flex-sparse", "prism-sparse"]


def test_flash_attention_3_is_either_of_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem()
    assert flash_attn.v3_unavailable(p) == "flash_attn_interface is not installed"
    module = ModuleType("fa3_fwd_interface")
    module.__spec__ = ModuleSpec(module.__name__, None)
    given: list[object] = []
    module.flash_attn_func = lambda *args, **options: (given.extend([*args, options]), (p.q, None))[1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert flash_attn.v3_unavailable(p) == "needs a GPU"
    assert flash_attn.prepare_v3(p)() is p.q
    assert given[-1] == {"softmax_scale": 0.125, "causal": True}


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


def raced(p: Problem, peer: Peer, ours: torch.Tensor) -> Findings:
    """The peer's findings on `p` beside a call that does nothing and whose output is `ours`."""
    race = Race(p, lambda: None, ours)
    race.enter(peer)
    return race.time_peer(peer)


def test_a_sparse_peer_is_timed_and_compared() -> None:
    p = problem()
    mask = token_mask(p.block_mask[None], p.grid)
    peer = Peer("exact", True, lambda _: "", lambda p: lambda: oracle.attend(p.q, p.k, p.v, mask, p.softmax_scale)[0])
    ours = peer.prepare(p)()
    agreed = raced(p, peer, ours)
    assert not agreed.problems
    expected = attend_flops(p.block_mask, p.grid, 64) / agreed.figures["ms"] / 1e9
    assert agreed.figures["tflops"] == pytest.approx(expected, abs=0.051)
    assert "differs from ours" in raced(p, peer, ours * 1.1).problems[0]


def test_a_peer_that_breaks_costs_its_own_figure_alone() -> None:
    def broken(_: Problem) -> Callable[[], torch.Tensor]:
        raise RuntimeError("no such kernel")

    p = problem()
    race = Race(p, lambda: None, torch.zeros_like(p.q))
    peer = Peer("broken", True, lambda _: "", broken)
    race.enter(peer)
    assert race.add_timing(Findings(), OURS, 1.0) > 0
    with pytest.raises(RuntimeError, match="no such kernel"):
        race.time_peer(peer)


def test_a_peer_that_breaks_while_it_is_timed_leaves_the_others_their_figures() -> None:
    left = iter(range(3))  # the call that enters, one that warms up, and one more

    def breaks() -> torch.Tensor:
        if next(left, None) is None:
            raise RuntimeError("out of memory")
        return torch.zeros_like(p.q)

    p = problem()
    race = Race(p, lambda: None, torch.zeros_like(p.q))
    breaking = Peer("breaking", True, lambda _: "", lambda _: breaks)
    other = Peer("other", False, lambda _: "", lambda p: lambda: torch.zeros_like(p.q))
    for peer in (breaking, other):
        race.enter(peer)
    assert race.add_timing(Findings(), OURS, 1.0) > 0
    with pytest.raises(RuntimeError, match="out of memory"):
        race.time_peer(breaking)
    assert race.time_peer(other).figures["runs"] == MIN_RUNS


def test_a_dense_peer_counts_dense_flops_and_is_not_compared() -> None:
    p = problem()
    peer = Peer("zeros", False, lambda _: "", lambda p: lambda: torch.zeros_like(p.q))
    found = raced(p, peer, p.q)
    assert not found.problems
    dense = 4 * 64 * 4 * (512 * 512 / 2)
    assert found.figures["tflops"] == pytest.approx(dense / found.figures["ms"] / 1e9, rel=0.02, abs=0.051)
