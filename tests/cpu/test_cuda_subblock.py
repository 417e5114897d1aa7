"""CudaSubBlockBackend without a GPU: the calling convention of templates/README.md, by the reference as libraries."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest
import torch
from torch import Tensor

from prism_gen.errors import UnsupportedError
from prism_gen.model import ModelSpec, SelectionSpec
from prism_gen.runtime import reference, reference_subblock
from prism_gen.runtime.backend import BeforeRope
from prism_gen.runtime.cuda_subblock import CudaSubBlockBackend
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.pooled_keys import PooledKeys
from prism_gen.runtime.reference_pool import pool
from prism_gen.runtime.rules import SelectRules
from prism_gen.specialize import score_problem
from prism_gen.sub_blocks import SubBlocks
from prism_gen.verify.reference_subblock_kernels import ReferenceScore, reference_subpool

BLOCK_SIZE = (128, 64)
GRID = BlockGrid(200, 300, *BLOCK_SIZE)


@pytest.fixture(autouse=True)
def no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.cuda's questions about streams, answered on a machine without CUDA."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: SimpleNamespace(cuda_stream=0))


def make_backend(model: ModelSpec, fine: SubBlocks, rules: SelectRules) -> CudaSubBlockBackend:
    """The backend on the reference's stand-ins for compiled libraries."""
    score = ReferenceScore(score_problem(model, BLOCK_SIZE, fine))

    def checked_score(*arguments: object) -> None:
        assert isinstance(arguments[-1], Tensor)
        assert arguments[-1].shape == (7,)
        score(*arguments)  # type: ignore[arg-type]

    def scratch_floats(*sizes: int | None) -> int:
        assert sizes == (2, 9, 3, fine.q, fine.k, GRID.seqlen_q, GRID.seqlen_k, None)
        return 7

    def library(**functions: object) -> SimpleNamespace:
        return SimpleNamespace(get_function=functions.__getitem__)

    return CudaSubBlockBackend(
        subpool=library(subpool=reference_subpool),
        score=library(score=checked_score, scratch_floats=scratch_floats),
        attend=library(attend=reference.attend),
        sub_blocks=fine,
        rules=rules,
    )


@pytest.mark.parametrize("rules", [SelectRules(), SelectRules(share="group", max_blocks=4)], ids=["head", "group"])
@pytest.mark.parametrize(
    "fine", [SubBlocks(8, 8), SubBlocks(4, 16, "mean", exclude_forced=True)], ids=["8x8", "4x16-mean-exclude"]
)
def test_stages_launch_what_the_reference_means(model: ModelSpec, fine: SubBlocks, rules: SelectRules) -> None:
    torch.manual_seed(0)
    q, k = (torch.randn(2, n, h, 64).bfloat16() for n, h in ((200, 9), (300, 3)))
    backend = make_backend(model, fine, rules)
    pooled = backend.pool(q, k, GRID)
    assert pooled.q_mean.dtype == torch.float16
    assert pooled.k_mean.shape[2] % 128 == 0
    means = [pool(x, size, None)[0].half().float() for x, size in ((q, fine.q), (k, fine.k))]
    thresholds = torch.full((rules.num_lists(9, 3), 1), 0.5)
    selection = backend.select(pooled, thresholds, softmax_scale=0.2, with_probs=True)
    exact = reference_subblock.select(
        means[0], means[1], thresholds, sub_blocks=fine, grid=GRID, softmax_scale=0.2, rules=rules
    )
    assert selection.block_mask().equal(exact.block_mask())
    assert selection.probs is not None
    assert exact.probs is not None
    assert selection.probs.equal(exact.probs)
    assert (selection.wanted_counts is None) == (rules.max_blocks is None)
    assert backend.select(pooled, thresholds, softmax_scale=0.2, with_probs=False).probs is None


def test_chunks_fill_a_cache_with_the_same_means(model: ModelSpec) -> None:
    torch.manual_seed(0)
    q, k = (torch.randn(2, n, h, 64).bfloat16() for n, h in ((200, 9), (2300, 3)))
    backend = make_backend(model, SubBlocks(4, 8), SelectRules())
    cache = PooledKeys(
        batch=2,
        num_kv_heads=3,
        head_dim=64,
        max_tokens=3000,
        block_size=64,
        sub_block_size=8,
        k_multiple=backend.means.k_multiple,
        device=torch.device("cpu"),
        dtype=backend.means.dtype_of(k),
    )
    for end in (230, 1029, 1031, 2300, 2300):
        chunked = backend.pool(q, k[:, :end], BlockGrid(200, end, *BLOCK_SIZE), cache)
    whole = backend.pool(q, k, BlockGrid(200, 2300, *BLOCK_SIZE))
    written = torch.zeros(whole.k_mean.shape[2], dtype=torch.bool)
    written[cuda_places(288)] = True
    assert chunked.k_mean[:, :, :384][:, :, written].equal(whole.k_mean[:, :, written])


def cuda_places(count: int) -> list[int]:
    """Where templates/README.md puts the means of sub-columns 0 .. count - 1, one by one."""
    places = []
    for column in range(count):
        tile, owner, index = column // 128, column % 128 // 32, column % 32
        places.append(128 * tile + 8 * (index // 2) + 2 * owner + index % 2)
    return places


def test_rotate_and_pool_is_refused(model: ModelSpec) -> None:
    backend = make_backend(model, SubBlocks(8, 8), SelectRules())
    x = torch.zeros(1, 4, 1, 64)
    with pytest.raises(UnsupportedError, match="no kernel rotates and pools sub-blocks"):
        backend.rotate_and_pool(BeforeRope(x, x, x, x), x, GRID)


def test_fused_rope_is_refused_when_kernels_are_chosen(model: ModelSpec) -> None:
    from prism_gen.specialize import layer_problems

    selection = SelectionSpec(block_sizes=(BLOCK_SIZE,), estimator="subblock", fused_rope=True)
    with pytest.raises(UnsupportedError, match="fused_rope with estimator 'subblock'"):
        layer_problems(msgspec.structs.replace(model, selection=selection), BLOCK_SIZE)
