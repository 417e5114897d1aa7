"""CudaBackend without a GPU: the calling convention of templates/README.md, and what the workspace keeps.

The modules here have the exports of real libraries, with their positional arguments, and compute by the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from prism_gen.model import ModelSpec
from prism_gen.runtime import PrismAttention, cuda_stages, reference
from prism_gen.runtime.cuda import CudaBackend
from prism_gen.runtime.cuda_stages import COUNTER_STRIDE, NUM_COUNTERS, TileCounters
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.pooled_keys import PooledKeys
from prism_gen.runtime.reference_pool import pool, pool_chunk
from prism_gen.runtime.rules import SelectRules
from prism_gen.runtime.selection import Selection
from prism_gen.specialize import block_pair_bands

CPU = torch.device("cpu")


class Library:
    """A module with named functions, as tvm_ffi gives them."""

    def __init__(self, **functions: Callable[..., Any]) -> None:
        self._functions = functions

    def get_function(self, name: str) -> Callable[..., Any]:
        return self._functions[name]


def libraries(model: ModelSpec, grid: BlockGrid) -> dict[str, Any]:
    """pool, select and attend whose exports write into the tensors they are given."""
    bands = block_pair_bands(model, (grid.block_size_q, grid.block_size_k))

    def launch_pool(*arguments: Any) -> None:
        q, k, q_mean, q_energy, k_mean, k_energy, bq, bk, start, tail_in, tail_out = arguments
        for target, value in zip((q_mean, q_energy), pool(q, bq, bands), strict=True):
            target.copy_(value)
        if k.shape[1] == 0:
            return
        chunk = pool_chunk(k, bk, bands, start=start, tail=tail_in)
        touched = slice(start // bk, -(-(start + k.shape[1]) // bk))
        k_mean[:, :, touched], k_energy[:, :, touched] = chunk.mean, chunk.energy
        if tail_out is not None:
            tail_out.copy_(chunk.tail)

    def select(*arguments: Any) -> None:
        *pooled, thresholds, bq, bk, seqlen_q, seqlen_k = arguments[:9]
        rules, (indices, counts, wanted, probs, scratch) = arguments[9:14], arguments[14:]
        assert BlockGrid(seqlen_q, seqlen_k, bq, bk) == grid
        assert scratch.shape == (11,)
        assert wanted is None
        chosen = reference.select(
            *pooled, thresholds, bands=bands, grid=grid, rules=SelectRules.of_kernel_arguments(*rules)
        )
        indices.copy_(chosen.block_indices)
        counts.copy_(chosen.block_counts)
        if probs is not None:
            probs.copy_(chosen.probs)

    def attend(*arguments: Any) -> None:
        q, k, v, out, lse, indices, counts, softmax_scale, tile_counter = arguments
        assert tile_counter.tolist() == [0]
        exact, exact_lse = reference.attend(q, k, v, Selection(indices, counts, grid), softmax_scale=softmax_scale)
        out.copy_(exact)
        if lse is not None:
            lse.copy_(exact_lse)

    return {
        "pool": Library(pool=launch_pool),
        "select": Library(select=select, scratch_floats=lambda *sizes: 11),
        "attend": Library(attend=attend),
    }


@pytest.fixture
def no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.cuda's questions about streams, answered on a machine without CUDA."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: SimpleNamespace(cuda_stream=0))


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch, no_stream: None) -> TileCounters:
    """New ones, of the CPU."""
    made = TileCounters()
    made.reserve(CPU)
    monkeypatch.setattr(cuda_stages, "TILE_COUNTERS", made)
    return made


@pytest.mark.usefixtures("counters")
@pytest.mark.parametrize(
    "rules",
    [
        SelectRules(),
        SelectRules(force_recent=False),
        SelectRules(force_sink=False),
        SelectRules(share="group", calibration="prefix"),
    ],
    ids=["paper", "no-recent", "no-sink", "group-prefix"],
)
@pytest.mark.parametrize("block_size", [(64, 64), (128, 64)], ids=str)
def test_stages_launch_what_the_reference_means(
    model: ModelSpec, block_size: tuple[int, int], rules: SelectRules
) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, h, 64).bfloat16() for n, h in ((200, 9), (300, 3), (300, 3)))
    grid = BlockGrid(200, 300, *block_size)
    backend = CudaBackend(**libraries(model, grid), rules=rules)
    exact = reference_stages(model, q, k, grid, rules)
    pooled = backend.pool(q, k, grid)
    cache = PooledKeys(
        batch=2, num_kv_heads=3, head_dim=64, max_tokens=512, block_size=block_size[1], device=torch.device("cpu")
    )
    for seqlen_k in (230, 290, 300, 300):
        chunked = backend.pool(q, k[:, :seqlen_k], BlockGrid(200, seqlen_k, *block_size), cache)
    assert all(a.equal(b) for a, b in zip(chunked[:4], pooled[:4], strict=True))
    num_lists = rules.num_lists(9, 3)
    thresholds = torch.full((num_lists, 2), 0.5)
    selection = backend.select(pooled, thresholds, softmax_scale=0.2, with_probs=True)
    assert selection.block_indices.shape == (2, num_lists, grid.num_q_blocks, grid.num_k_blocks)
    assert selection.block_counts.equal(exact.block_counts)
    assert selection.block_mask().equal(exact.block_mask())
    assert selection.probs.equal(exact.probs)
    assert backend.select(pooled, thresholds, softmax_scale=0.2, with_probs=False).probs is None
    out, lse = backend.attend(q, k, v, selection, softmax_scale=0.2, return_lse=True)
    expected, expected_lse = reference.attend(q, k, v, exact, softmax_scale=0.2)
    assert out.equal(expected)
    assert lse.equal(expected_lse)
    assert backend.attend(q, k, v, selection, softmax_scale=0.2, return_lse=False)[1] is None


def reference_stages(model: ModelSpec, q: Tensor, k: Tensor, grid: BlockGrid, rules: SelectRules) -> Selection:
    bands = block_pair_bands(model, (grid.block_size_q, grid.block_size_k))
    (q_mean, q_energy), (k_mean, k_energy) = (
        pool(x, size, bands) for x, size in ((q, grid.block_size_q), (k, grid.block_size_k))
    )
    return reference.select(
        q_mean,
        k_mean,
        q_energy,
        k_energy,
        torch.full((rules.num_lists(9, 3), 2), 0.5),
        bands=bands,
        grid=grid,
        rules=rules,
    )


def test_a_stream_keeps_its_counter(monkeypatch: pytest.MonkeyPatch, counters: TileCounters) -> None:
    first = counters.current(CPU)
    assert counters.current(CPU) is first
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: SimpleNamespace(cuda_stream=1))
    other = counters.current(CPU)
    assert other.data_ptr() - first.data_ptr() == 4 * COUNTER_STRIDE
    counters.reserve(CPU)  # another layer's: nothing new
    assert counters.current(CPU) is other


def test_no_call_allocates_what_it_keeps(monkeypatch: pytest.MonkeyPatch, counters: TileCounters) -> None:
    """torch.compile's CUDA graphs refuse memory of their pool that outlives a call."""
    with monkeypatch.context() as patched:
        patched.setattr(torch, "zeros", None)
        counters.current(CPU)


def test_streams_beyond_the_counters_zero_their_own(monkeypatch: pytest.MonkeyPatch, counters: TileCounters) -> None:
    stream = SimpleNamespace(cuda_stream=0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: stream)
    kept = []
    for stream.cuda_stream in range(NUM_COUNTERS):
        kept.append(counters.current(CPU).data_ptr())
    assert len(set(kept)) == NUM_COUNTERS
    stream.cuda_stream = NUM_COUNTERS
    first, second = counters.current(CPU), counters.current(CPU)
    assert first.data_ptr() != second.data_ptr()
    assert (first.tolist(), second.tolist()) == ([0], [0])


def test_a_capture_shares_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, counters: TileCounters) -> None:
    eager = counters.current(CPU)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    first, second = counters.current(CPU), counters.current(CPU)
    assert len({x.data_ptr() for x in (eager, first, second)}) == 3
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert counters.current(CPU) is eager


def test_construction_resolves_each_stage_and_binds_it(
    make_bundle: Callable[..., Path], model: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one device of the right capability; libraries are opened in the order pool, select, attend."""
    from prism_gen.runtime.load import Bundle

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "some GPU")
    monkeypatch.setattr(Tensor, "to", lambda self, *_args, **_kwargs: self)  # thresholds stay where they are
    opened = []
    exports = {name: (lambda *_: None) for name in ("pool", "select", "scratch_floats", "attend")}

    def module(_self: Bundle, entry: Any) -> Library:
        opened.append(entry.spec.problem.label())
        return Library(**exports)

    monkeypatch.setattr(Bundle, "module", module)
    reserved: list[torch.device] = []
    monkeypatch.setattr(cuda_stages.TILE_COUNTERS, "reserve", reserved.append)
    attention = PrismAttention(make_bundle(), "smollm2", 5, block_size=(128, 64))
    assert opened == ["bf16-d64-h32-l48", "d64-h32-l48", "bf16-d64-b128x64"]
    assert (attention.backend.name, attention.device) == ("cuda", torch.device("cuda", 0))
    assert reserved == [torch.device("cuda", 0)]
    assert [r.entry.spec.family for r in attention.resolutions] == ["pool", "select", "attend"]
